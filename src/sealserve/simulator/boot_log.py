"""The boot event log of a software TD, as TDX firmware leaves one in ACPI.

Rules this module keeps:

* It writes and extends by itself. The parser and the replay of
  :mod:`sealserve.tdx.ccel` are not used, so that they can be held against it.
* As in reality an event's text is a label: except for actions and separators
  it is not what was measured. What was measured is made from the firmware's
  label and named nowhere.
* SIMULATION stands in the table, in the log's head and in every event, except
  in separators, which are four zero bytes.

Sources: Intel TDX Virtual Firmware Design Guide, "CC Event Log", "Measurement
Register Usage" and the ACPI table CCEL; TCG PC Client Platform Firmware Profile,
"Event Types" and "Specification ID Version Event"; Linux
``drivers/firmware/efi/libstub/efi-stub-helper.c`` for the last two labels. All
integers are little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

__all__ = ["AREA_BYTES", "BootLog", "boot_log"]

AREA_BYTES = 64 * 1024

_SHA384 = 0x000C
_DIGEST_BYTES = 48
_EV_NO_ACTION = 0x00000003
_EV_SEPARATOR = 0x00000004
_EV_EVENT_TAG = 0x00000006
_EV_PLATFORM_CONFIG_FLAGS = 0x0000000A
_EV_EFI_VARIABLE_BOOT = 0x80000002
_EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
_EV_EFI_ACTION = 0x80000007
_EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
_EV_EFI_HANDOFF_TABLES2 = 0x8000000B

_EFI_GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_EFI_HOB_LIST = UUID("7739f24c-93d7-11d4-9a3a-0090273fc14d").bytes_le
_FILE_PATH_NODE = (4, 4)  # type and subtype of a device path's nodes: media, file path
_END_OF_PATH = bytes([0x7F, 0xFF, 4, 0])
_INITRD_TAG, _LOAD_OPTIONS_TAG = 0x8F3B22EC, 0x8F3B22ED

# Where the firmware would have put things; nothing is there.
_HOB_ADDRESS, _BLOB_ADDRESS, _IMAGE_ADDRESS = 0x809000, 0xFFC00000, 0x7C000000
_AREA_ADDRESS = 0x7FBEE000

_CC_TYPE_TDX = 2


@dataclass(frozen=True, slots=True)
class BootLog:
    """What firmware and boot loader leave behind.

    Attributes:
        table: the ACPI table CCEL (56 bytes).
        area: the log area that it points to (:data:`AREA_BYTES`), padded.
        registers: RTMR0 to RTMR2 (48 bytes each) as these events made them.
    """

    table: bytes
    area: bytes
    registers: tuple[bytes, bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Event:
    """One entry; ``measured`` is what the digest is of."""

    rtmr: int
    kind: int
    measured: bytes
    text: bytes

    @property
    def digest(self) -> bytes:
        return hashlib.sha384(self.measured).digest()

    def encode(self) -> bytes:
        # TCG_PCR_EVENT2. Index 0 is MRTD.
        head = struct.pack("<IIIH", self.rtmr + 1, self.kind, 1, _SHA384)
        return head + self.digest + struct.pack("<I", len(self.text)) + self.text


def boot_log(firmware: str) -> BootLog:
    """The log of a TD with this firmware: the same label, the same log."""
    registers = [bytes(_DIGEST_BYTES)] * 3
    written = _spec_id_event()
    for event in _events(firmware):
        written += event.encode()
        registers[event.rtmr] = hashlib.sha384(registers[event.rtmr] + event.digest).digest()
    return BootLog(
        table=_acpi_table(),
        area=written.ljust(AREA_BYTES, b"\xff"),  # erased memory, as TDVF pads
        registers=(registers[0], registers[1], registers[2]),
    )


def _events(firmware: str) -> Iterator[_Event]:
    """What happens at boot, in order."""

    def content(what: str) -> bytes:
        # A digest of the label, so that its length does not matter to the area's size.
        return b"SIMULATION " + hashlib.sha384(f"{what} of {firmware}".encode()).digest()

    def image(what: str, path: str) -> _Event:
        measured = content(what)
        text = _image_load(path, len(measured))
        return _Event(1, _EV_EFI_BOOT_SERVICES_APPLICATION, measured, text)

    def variable(name: str) -> _Event:
        # The value alone is measured, the text states name and value.
        value = content(f"variable {name}")
        return _Event(0, _EV_EFI_VARIABLE_BOOT, value, _variable(name, value))

    hob, config, acpi = map(content, ("TD HOB", "configuration volume", "ACPI data"))
    command_line, initrd = content("command line"), content("initrd")
    yield _Event(0, _EV_EFI_HANDOFF_TABLES2, hob, _handoff_table("SIMULATION TD HOB"))
    blob = _firmware_blob("SIMULATION configuration volume", len(config))
    yield _Event(0, _EV_EFI_PLATFORM_FIRMWARE_BLOB2, config, blob)
    yield _Event(0, _EV_PLATFORM_CONFIG_FLAGS, acpi, b"SIMULATION ACPI DATA\0")
    yield variable("BootOrder")
    yield variable("Boot0000")
    yield _action("Calling EFI Application from Boot Option")
    yield _separator(0)
    yield _separator(1)
    yield image("boot loader", "\\EFI\\BOOT\\BOOTX64.EFI")
    yield image("kernel", "\\vmlinuz")
    options = _tagged(_LOAD_OPTIONS_TAG, "SIMULATION LOADED_IMAGE::LoadOptions")
    yield _Event(2, _EV_EVENT_TAG, command_line, options)
    yield _Event(2, _EV_EVENT_TAG, initrd, _tagged(_INITRD_TAG, "SIMULATION Linux initrd"))
    yield _action("Exit Boot Services Invocation")
    yield _action("Exit Boot Services Returned with Success")


def _action(text: str) -> _Event:
    words = f"SIMULATION {text}".encode()
    return _Event(1, _EV_EFI_ACTION, words, words)


def _separator(rtmr: int) -> _Event:
    return _Event(rtmr, _EV_SEPARATOR, bytes(4), bytes(4))


def _variable(name: str, value: bytes) -> bytes:
    """UEFI_VARIABLE_DATA."""
    head = _EFI_GLOBAL_VARIABLE + struct.pack("<QQ", len(name), len(value))
    return head + name.encode("utf-16-le") + value


def _firmware_blob(description: str, size: int) -> bytes:
    """UEFI_PLATFORM_FIRMWARE_BLOB2."""
    return _counted(description) + struct.pack("<QQ", _BLOB_ADDRESS, size)


def _handoff_table(description: str) -> bytes:
    """UEFI_HANDOFF_TABLE_POINTERS2 with one table."""
    pointer = _EFI_HOB_LIST + struct.pack("<Q", _HOB_ADDRESS)
    return _counted(description) + struct.pack("<Q", 1) + pointer


def _counted(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _image_load(path: str, size: int) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT with a device path of one file."""
    name = f"\\SIMULATION{path}\0".encode("utf-16-le")
    node = struct.pack("<BBH", *_FILE_PATH_NODE, 4 + len(name)) + name
    device_path = node + _END_OF_PATH
    return struct.pack("<QQQQ", _IMAGE_ADDRESS, size, 0, len(device_path)) + device_path


def _tagged(tag: int, description: str) -> bytes:
    """TCG_PCClientTaggedEvent."""
    text = description.encode() + b"\0"
    return struct.pack("<II", tag, len(text)) + text


def _spec_id_event() -> bytes:
    """The head of the log: format version 2, SHA-384 alone."""
    vendor = b"SIMULATION"
    body = struct.pack("<16sIBBBBI", b"Spec ID Event03", 0, 0, 2, 0, 2, 1)
    body += struct.pack("<HHB", _SHA384, _DIGEST_BYTES, len(vendor)) + vendor
    return struct.pack("<II20sI", 1, _EV_NO_ACTION, bytes(20), len(body)) + body


def _acpi_table() -> bytes:
    # Signature, length, revision, checksum; names of maker and table (6 and 8 bytes, one
    # word here) and their versions.
    raw = bytearray(struct.pack("<4sIBB14sI4sI", b"CCEL", 56, 1, 0, b"SIMULATION", 1, b"SIMU", 1))
    raw += struct.pack("<BBHQQ", _CC_TYPE_TDX, 0, 0, AREA_BYTES, _AREA_ADDRESS)
    raw[9] = -sum(raw) % 256  # all bytes of an ACPI table add up to zero
    return bytes(raw)
