"""The kernel's own tests of traps and threads, on our machine and on QEMU; determinism of what they do."""

from __future__ import annotations

import random
import re

import pytest

from emu.boot import Boot
from emu.machine import Machine, StopKind
from tests.guest.running import RELEASES, elf, on_luemu, on_qemu, symbols

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


def test_a_printed_trace_names_its_callers() -> None:
    """`dump_stack()`: addresses of the image; on QEMU the same ones."""
    traces = []
    for text in (on_luemu("new", CMDLINE).text, on_qemu("new", CMDLINE)):
        after = text[text.index("backtrace through calls:") :].split("Call trace:\n")[1]
        found = re.match(r"(?:  0x[0-9a-f]+\n)+", after)
        assert found, text
        traces.append([int(line, 16) for line in found[0].split()])
    names = [symbols("new").describe(a - 1).split("+")[0] for a in traces[0]]
    assert names[:3] == ["trace_inner", "trace_middle", "trace_outer"]
    assert names[-2:] == ["thread_first_run", "thread_start"]
    assert traces[0] == traces[1]


def test_slices_change_nothing() -> None:
    """The run is cut at ticks that have nothing to do with the kernel's."""
    whole, cut = Machine(128 << 20), Machine(128 << 20)
    with whole, cut:
        for m in (whole, cut):
            m.boot(Boot(kernel=elf("old").read_bytes(), cmdline=CMDLINE))
        assert whole.run(max_instructions=300_000_000).kind == StopKind.POWER_OFF
        at = random.Random(3)
        while cut.run(cut.ticks + at.randrange(1, 20_000_000)).kind == StopKind.UNTIL:
            assert cut.ticks < 2 * whole.ticks, "the cut run does not end"
        assert cut.console == whole.console
        assert cut.state_hash() == whole.state_hash()


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
