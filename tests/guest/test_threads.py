"""The kernel's own tests of traps and threads, on our machine and on QEMU; determinism of what they do."""

from __future__ import annotations

import re

import pytest

from emu.machine import StopKind
from tests.guest.running import RELEASES, on_luemu, on_qemu

CMDLINE = "selftest=on"
PARTS = ("traps", "sched")


def results(text: str) -> list[str]:
    """Lines of the two parts, their sums, and failures."""
    wanted = re.compile(rf"(trap test|sched test|selftest|selftest ({'|'.join(PARTS)})): ")
    return [line for line in text.splitlines() if wanted.match(line)]


@pytest.mark.parametrize("release", RELEASES)
def test_every_check_holds(release: str) -> None:
    run = on_luemu(release, CMDLINE)
    assert run.stop.kind == StopKind.POWER_OFF, f"{run.stop}\n{run.text[-1500:]}"
    for part in PARTS:
        found = re.search(rf"^selftest {part}: (\d+) checks, (\d+) failed$", run.text, re.MULTILINE)
        assert found, f"the self-test of {part} did not end:\n{run.text[-1500:]}"
        assert int(found[1]) > 40 and int(found[2]) == 0, run.text


@pytest.mark.parametrize("release", RELEASES)
def test_qemu_prints_the_same(release: str) -> None:
    ours, qemu = results(on_luemu(release, CMDLINE).text), results(on_qemu(release, CMDLINE))
    assert len(ours) > 15
    assert ours == qemu


def test_two_runs_are_one() -> None:
    first, second = (on_luemu("old", CMDLINE) for _ in range(2))
    assert first.text == second.text
    assert str(first.stop) == str(second.stop)
    assert first.image == second.image


def test_another_clock_source() -> None:
    """Without an HPET the PM timer counts; the tests of sleeping hold."""
    text = on_qemu("old", CMDLINE, machine="q35,hpet=off")
    assert "time: clock source: ACPI PM timer;" in text
    assert "ACPI: HPET missing" in text
    assert re.search(r"^selftest sched: \d+ checks, 0 failed$", text, re.MULTILINE), text
