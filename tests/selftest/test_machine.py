"""The self-test guest on our machine prints, line by line, what it prints on QEMU."""

from __future__ import annotations

import pytest

from emu.boot import Boot
from emu.machine import Machine, StopKind
from tests.selftest.test_qemu import GROUPS, MAY_DIFFER, MEMORY_MIB, elf, full_run, qemu_output


def machine_output(cmdline: str) -> str:
    """What the guest prints on our machine, which it must switch off by itself."""
    with Machine(MEMORY_MIB << 20) as m:
        m.boot(Boot(elf().read_bytes(), cmdline))
        stop = m.run(max_instructions=2_000_000_000)
        output = m.console.decode().replace("\r\n", "\n")
    assert stop.kind is StopKind.POWER_OFF, f"{stop}\n{output[-2000:]}"
    return output


def same(ours: str, theirs: str) -> None:
    keep = [
        [line for line in text.splitlines() if not any(p.fullmatch(line) for p in MAY_DIFFER)]
        for text in (ours, theirs)
    ]
    for mine, other in zip(*keep, strict=False):
        assert mine == other, f"ours:  {mine}\nQEMU's: {other}"
    assert len(keep[0]) == len(keep[1])


def test_everything_is_as_on_qemu() -> None:
    assert len(MAY_DIFFER) <= 6
    ours = machine_output("")
    assert "224 tests, 0 failed" in ours.splitlines()[-1], ours.splitlines()[-1]
    same(ours, full_run())


def test_groups_alone_are_as_on_qemu() -> None:
    for group in GROUPS[::6]:
        same(machine_output(f"only={group}"), qemu_output(f"only={group}"))


def test_the_comparison_can_fail() -> None:
    with pytest.raises(AssertionError):
        same("a: ok\nb: ok\n", "a: ok\nb: FAILED\n")
    with pytest.raises(AssertionError):
        same("a: ok\n", "a: ok\nb: ok\n")
