"""Guests that lie to the host about themselves: init's port is written to by whoever wants to, and `ok`
must not follow. The clauses of the verdict that no honest init breaks are broken here."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.debug.verdict import Result
from emu.initproto import DONE, EXIT, RECORD_HEADER, RECORD_MAGIC, RECORD_VERSION
from emu.machine import StopKind
from tests.linux import updates
from tests.linux.build import LinuxBuild
from tests.oracles import require

pytestmark = pytest.mark.linux


def record(kind: int, sequence: int, *fields: str) -> bytes:
    payload = b"".join(field.encode() + b"\0" for field in fields)
    return RECORD_HEADER.pack(RECORD_MAGIC, kind, RECORD_VERSION, sequence, len(payload)) + payload


def run(linux: LinuxBuild, tmp_path: Path, script: str, forged: bytes = b"", **changes: object) -> Result:
    """Run a shell script as the first program, with bytes that it may send in /forged."""
    (tmp_path / "script").write_text(script)
    (tmp_path / "forged").write_bytes(forged)
    shell = require("busybox")
    files = [(linux.lu, "/bin/lu"), (tmp_path / "script", "/script"), (tmp_path / "forged", "/forged")]
    files += [(shell, f"/bin/{name}") for name in ("sh", "cat", "poweroff", "true")]
    return updates.run(linux, files=files, before=["sh /script", "true"], **changes)


SEND = "cat /forged > /dev/ttyS1"
# HELLO and START of the first program were records 0 and 1
SUCCESS = record(EXIT, 2, "0", "0", "-") + record(DONE, 3, "0")


def test_the_machine_is_switched_off_by_a_program(linux: LinuxBuild, tmp_path: Path) -> None:
    result = run(linux, tmp_path, "poweroff -f", updates=0, after=[])
    assert not result.ok and result.stop.kind is StopKind.POWER_OFF
    assert result.reasons == [
        "init did not get to the end of its plan", "sh /script (before, generation 0) did not end"
    ]  # fmt: skip


def test_rubbish_on_the_port_of_init(linux: LinuxBuild, tmp_path: Path) -> None:
    """Everything that init says afterwards is in doubt, even that all went well."""
    result = run(linux, tmp_path, "echo rubbish > /dev/ttyS1", updates=0, after=[])
    assert not result.ok and result.stop.kind is StopKind.POWER_OFF
    broken = "what init reports cannot be read: init's serial port: at byte "
    assert result.reasons[0].startswith(broken) and "no record but b'r'" in result.reasons[0], result.reasons


def test_success_is_claimed_before_all_programs_ran(linux: LinuxBuild, tmp_path: Path) -> None:
    result = run(linux, tmp_path, f"{SEND}; poweroff -f", SUCCESS, updates=0, after=[])
    assert not result.ok and result.reasons == ["1 of 2 programs ran"]
    assert result.programs[0]["status"] == 0, "what the guest claimed"


def test_success_is_claimed_without_an_update(linux: LinuxBuild, tmp_path: Path) -> None:
    result = run(linux, tmp_path, f"{SEND}; poweroff -f", SUCCESS, updates=1, after=[])
    assert not result.ok and result.updates == []
    assert "the host saw 0 of 1 updates" in result.reasons


def test_success_is_claimed_and_the_machine_goes_on(linux: LinuxBuild, tmp_path: Path) -> None:
    """The real init's own records then come with numbers that are taken."""
    result = run(linux, tmp_path, SEND, SUCCESS, updates=0, after=[])
    assert not result.ok and any("where 4 was due" in r for r in result.reasons), result.reasons


def test_a_record_is_cut_off(linux: LinuxBuild, tmp_path: Path) -> None:
    result = run(linux, tmp_path, f"{SEND}; poweroff -f", SUCCESS[:-3], updates=0, after=[])
    assert not result.ok and "init did not get to the end of its plan" in result.reasons


def test_moments_that_the_host_did_not_see(linux: LinuxBuild, tmp_path: Path) -> None:
    """Without symbols of the new kernel, its K and F pass unseen, however well its programs do."""
    alone = tmp_path / "bzImage"
    alone.write_bytes(linux.bzimage.read_bytes())
    result = updates.run(linux, new=alone)
    assert not result.ok and all(p["status"] == 0 for p in result.programs)
    assert result.updates[0]["moments"] == ["J"]
    assert "update 1 was not examined at K" in result.reasons
    assert "update 1 was not examined at F" in result.reasons
