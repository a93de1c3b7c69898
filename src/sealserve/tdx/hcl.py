"""The report of Azure's paravisor: a TDREPORT, and the runtime data it speaks for.

Rules this module keeps:

* The report has one right form, and what it states about its own sizes must
  agree. Forms that nobody here has seen are refused, not guessed at.
* It proves nothing by itself. The runtime data become facts only when the
  report data of a verified quote is their hash; that is
  :mod:`sealserve.attestation.azure`'s job.

Layout (little-endian): header of 32 bytes, hardware report of 1184, request
data of 20 with the size of the runtime JSON, which follows; then zeros.
Source: Microsoft, "Guest attestation for confidential VMs"; measured on a
published report.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from dataclasses import dataclass
from typing import Any

from sealserve.errors import InputError
from sealserve.tdx.evidence import MAX_HCL_REPORT_BYTES
from sealserve.tdx.tdreport import TDREPORT_BYTES

__all__ = ["HclReport", "RuntimeData", "parse_hcl_report", "parse_runtime_data"]

_HEADER = struct.Struct("<4sIIII12s")  # signature, version, size, request type, status, -
_REQUEST = struct.Struct("<IIIII")  # size, version, report type, hash type, JSON size
_HARDWARE_BYTES = 1184  # room for the largest report of any vendor
_REQUEST_AT = _HEADER.size + _HARDWARE_BYTES
_JSON_AT = _REQUEST_AT + _REQUEST.size
_VERSION, _REQUEST_TYPE, _REQUEST_VERSION = 2, 2, 1
_TYPE_TDX = 4
_HASH_SHA256 = 1

_AK = "HCLAkPub"
_MAX_KEYS = 16
_KEY_BITS = range(2048, 4097)
_PUBLIC_EXPONENT = 65537
_USER_DATA = re.compile(r"[0-9A-Fa-f]{128}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]{1,1024}")


@dataclass(frozen=True, slots=True)
class HclReport:
    """A paravisor's report, unverified.

    Attributes:
        tdreport: the TDREPORT (1024 bytes) that a quote can be made of.
        runtime_json: the bytes it speaks for.
    """

    tdreport: bytes
    runtime_json: bytes

    @property
    def report_data(self) -> bytes:
        """The report data that speaks for the runtime data: their SHA-256 and 32 zeros."""
        return hashlib.sha256(self.runtime_json).digest() + bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeData:
    """What the runtime JSON says.

    Attributes:
        ak_modulus: modulus of the vTPM's RSA attestation key; its exponent is 65537.
        user_data: what the guest asked to have included (64 bytes).
        secure_boot: whether the guest's firmware verifies what it boots.
        console_enabled: whether the host has a console of the guest.
        vm_id: Azure's id of the machine.
    """

    ak_modulus: int
    user_data: bytes
    secure_boot: bool
    console_enabled: bool
    vm_id: str

    def to_dict(self) -> dict[str, Any]:
        """The data as a JSON object."""
        return {
            "ak_modulus": f"{self.ak_modulus:x}",
            "user_data": self.user_data.hex(),
            "secure_boot": self.secure_boot,
            "console_enabled": self.console_enabled,
            "vm_id": self.vm_id,
        }


def parse_hcl_report(raw: bytes) -> HclReport:
    """Split a report of the paravisor.

    Args:
        raw: what the vTPM's NV index 0x01400001 holds, at most
            :data:`~sealserve.tdx.evidence.MAX_HCL_REPORT_BYTES`.

    Raises:
        InputError: ``azure.report_too_large`` or ``azure.report_malformed``.
    """
    if len(raw) > MAX_HCL_REPORT_BYTES:
        raise InputError(
            "azure.report_too_large",
            f"a report of {len(raw)} bytes is larger than the limit of {MAX_HCL_REPORT_BYTES}",
        )
    if len(raw) < _JSON_AT:
        raise _malformed(f"it ends at byte {len(raw)}, before its runtime data")
    signature, version, size, request_type, status, reserved = _HEADER.unpack_from(raw)
    if signature != b"HCLA" or any(reserved):
        raise _malformed("it does not begin as a report of the paravisor")
    if (version, request_type, status) != (_VERSION, _REQUEST_TYPE, 0):
        raise _malformed(f"version {version}, type {request_type}, status {status} are unknown")
    data_size, data_version, kind, hash_kind, json_size = _REQUEST.unpack_from(raw, _REQUEST_AT)
    if (data_version, kind, hash_kind) != (_REQUEST_VERSION, _TYPE_TDX, _HASH_SHA256):
        raise _malformed(
            f"runtime data of version {data_version}, report type {kind}, hash {hash_kind} "
            "are unknown; TDX with SHA-256 is known"
        )
    end = _JSON_AT + json_size
    if data_size != _REQUEST.size + json_size or size != end or end > len(raw):
        raise _malformed("its sizes do not agree")
    padding = raw[_HEADER.size + TDREPORT_BYTES : _REQUEST_AT] + raw[end:]
    if any(padding):
        raise _malformed("its padding is not zero")
    return HclReport(raw[_HEADER.size : _HEADER.size + TDREPORT_BYTES], raw[_JSON_AT:end])


def parse_runtime_data(runtime_json: bytes) -> RuntimeData:
    """Read the runtime JSON of a report.

    Raises:
        InputError: ``azure.runtime_malformed``.
    """
    try:
        document = json.loads(runtime_json.decode("ascii"), object_pairs_hook=_unique)
        configuration = document["vm-configuration"]
        user_data = document["user-data"]
        if not _USER_DATA.fullmatch(user_data):
            raise ValueError("user-data is not 64 bytes in hexadecimal")
        return RuntimeData(
            ak_modulus=_attestation_key(document["keys"]),
            user_data=bytes.fromhex(user_data),
            secure_boot=_flag(configuration["secure-boot"]),
            console_enabled=_flag(configuration["console-enabled"]),
            vm_id=_text(configuration["vmUniqueId"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            "azure.runtime_malformed",
            f"the runtime data cannot be read: {type(error).__name__}: {str(error)[:120]}",
        ) from None


def _attestation_key(keys: Any) -> int:
    if not isinstance(keys, list) or len(keys) > _MAX_KEYS:
        raise ValueError("the keys are no list, or too many")
    found = [key for key in keys if key["kid"] == _AK]
    if len(found) != 1:
        raise ValueError(f"{len(found)} keys are named {_AK}")
    key = found[0]
    if key["kty"] != "RSA" or key["key_ops"] != ["sign"]:
        raise ValueError(f"{_AK} is not an RSA key for signing")
    modulus = _number(key["n"])
    if _number(key["e"]) != _PUBLIC_EXPONENT or modulus.bit_length() not in _KEY_BITS:
        raise ValueError(f"{_AK} has an unusual size or exponent")
    return modulus


def _number(text: Any) -> int:
    if not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("not true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 128:
        raise TypeError("not a short text")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two members with one name, one would win: refuse both."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name stands twice")
    return members


def _malformed(message: str) -> InputError:
    return InputError("azure.report_malformed", f"this is not a report of the paravisor: {message}")
