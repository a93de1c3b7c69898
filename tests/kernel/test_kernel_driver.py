"""The kernel driver in a real kernel: the right bytes, never a wrong one, nothing left behind."""

from __future__ import annotations

import hashlib

import pytest

from sealserve.volume.record import BLOCK_SIZE
from tests.kernel.conftest import ANY_KEY, HOSTILE, VICTIM, Guest
from tests.kernel.scenarios import SCENARIOS
from tests.soak import times
from tests.volume.conftest import Sealed
from tests.volume.test_mount import sums

# Whichever test comes first boots the guest, on a machine that may be busy.
pytestmark = pytest.mark.timeout(times(7200, 400))


def test_the_command_mounts_through_verity_and_crypt(guest: Guest, sealed: Sealed) -> None:
    found = guest["by_command"]
    assert "'models' is mounted on /mnt" in found["answer"]
    assert found["files"] == sums(sealed.source)
    assert found["link"] == "server.key"
    assert set(found["options"]) >= {"ro", "nodev", "nosuid", "noexec"}
    (crypt, verity, loop), read_only = zip(*found["stack"], strict=True)
    assert crypt.startswith(f"CRYPT-LUKS2-{sealed.record.uuid.replace('-', '')}-")
    assert verity.startswith("CRYPT-VERITY-")
    assert loop == "/data/models.seal"
    assert read_only == ("1", "1", "1")
    assert found["key_seen"] == []
    assert found["status"] == 0


def test_every_block_is_what_cryptsetup_decrypts(guest: Guest, plain: bytes) -> None:
    assert guest["every_block"]["sha256"] == hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_left_behind(guest: Guest, scenario: str) -> None:
    """No loop device, no mapping, no mount, no mount point, no temporary file."""
    assert guest[scenario]["left"] == []


def test_a_wrong_key_is_refused(guest: Guest) -> None:
    found = guest["wrong_key"]
    assert "[volume.key_wrong]" in found["refused"]
    # The keyslot itself, should our comparison of key ids ever be passed by.
    assert found["past_our_check"].startswith("cryptsetup ended with status 2")


def test_flipped_data_is_refused_or_eio_and_never_a_wrong_byte(
    guest: Guest, sealed: Sealed
) -> None:
    found = guest["flipped_data"]
    assert "[volume.block_mismatch]" in found["refused"]
    first = sealed.record.segment_offset // BLOCK_SIZE
    flipped = {bit // 8 // BLOCK_SIZE - first for bit in guest.plan["data"]}
    assert found["wrong"] == []
    assert found["eio"] == sorted(flipped)


def test_a_flipped_tree_is_refused_and_eio_below(guest: Guest, sealed: Sealed) -> None:
    found = guest["flipped_leaf"]
    assert "[volume.tree_mismatch]" in found["refused"]
    covered = sealed.record.verity.data_blocks
    first = sealed.record.segment_offset // BLOCK_SIZE
    begin = (covered - 1) // 128 * 128  # the last leaf block's first
    assert found["wrong"] == []
    assert found["eio"] == list(range(begin - first, covered - first))


def test_a_flipped_header_is_refused_and_unreadable_below(guest: Guest) -> None:
    found = guest["flipped_header"]
    assert "[volume.header_mismatch]" in found["refused"]
    assert "[volume.unreadable]" in found["past_our_check"]


def test_a_flip_under_a_mounted_file_is_eio(guest: Guest, sealed: Sealed) -> None:
    found = guest["flipped_file"]
    assert found["errno"] == 5
    others = sums(sealed.source)
    del others[VICTIM]
    assert found["files"] == others


def test_a_header_swapped_after_our_check_has_no_effect(guest: Guest) -> None:
    outcomes = guest["swapped_header"]["outcomes"]
    assert len(outcomes) == guest.plan["swaps"]
    assert {name for name, _, _ in outcomes} == set(HOSTILE)
    for name, program, outcome in outcomes:
        code = "volume.unreadable" if program == "veritysetup" else "volume.tool_failed"
        assert f"[{code}]" in outcome, (name, program)


def test_the_swapped_headers_do_fool_cryptsetup_alone(guest: Guest) -> None:
    """The control: without verity below, the kernel opens what the attacker wrote.

    One of the headers needs no key at all: cryptsetup 2.6 takes a keyslot without a cipher.
    """
    found = guest["swapped_header_without_verity"]
    assert found["right"] == sorted(HOSTILE)
    assert found["wrong"] == [ANY_KEY]


def test_a_failure_at_each_step_is_refused_or_made_good(guest: Guest) -> None:
    """That nothing is left is said by `test_nothing_is_left_behind`."""
    outcomes = guest["failing_steps"]["outcomes"]
    assert len(outcomes) == guest.plan["cycles"]
    for program, word, after, outcome in outcomes:
        opening = (program, word) in {
            ("losetup", "--find"), ("veritysetup", "open"), ("cryptsetup", "open"), ("mount", "-t"),
        }  # fmt: skip
        expected = "injected" if opening else "opened"
        assert expected in outcome, (program, word, after, outcome)
