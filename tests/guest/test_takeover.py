"""A kernel is started by kexec on devices that nobody reset: whatever state they are in, it comes up and its
interrupts, clock and threads work. Here the state is made by hand, before the first instruction."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest

from emu.devices import hpet, ioapic, lapic
from emu.machine import Machine, StopKind
from tests.guest.running import RELEASES, on_luemu

BASE = lapic.DEFAULT_BASE
LEFT_OVER = 0x31
"""A vector that the kernel before gave to something."""


def apic(m: Machine, register: int, value: int) -> None:
    """Write a register of the local APIC, in either mode."""
    own = m.platform.lapics[0]
    if own.x2apic:
        assert own.write_msr(lapic.MSR_X2APIC + (register >> 4), value, 0)
    else:
        m.platform.mmio_write(0, BASE + register, 4, value, 0)


def x2apic(m: Machine) -> None:
    base = BASE | lapic.BASE_BSP | lapic.BASE_ENABLE | lapic.BASE_X2APIC
    assert m.platform.lapics[0].write_msr(lapic.MSR_APIC_BASE, base, 0)
    apic(m, lapic.SVR, 0x1FF)


def apic_off(m: Machine) -> None:
    assert m.platform.lapics[0].write_msr(lapic.MSR_APIC_BASE, BASE | lapic.BASE_BSP, 0)


def apic_soft_off(m: Machine) -> None:
    apic(m, lapic.SVR, 0xFF)


def timer_runs(m: Machine) -> None:
    apic(m, lapic.DIVIDE, 0xB)
    apic(m, lapic.LVT_TIMER, 1 << 17 | LEFT_OVER)
    apic(m, lapic.INITIAL_COUNT, 1000)


def tsc_deadline(m: Machine) -> None:
    apic(m, lapic.LVT_TIMER, 2 << 17 | LEFT_OVER)
    assert m.platform.lapics[0].write_msr(lapic.MSR_TSC_DEADLINE, 100_000, 0)


def in_service(m: Machine) -> None:
    own = m.platform.lapics[0].s
    own.isr = 1 << LEFT_OVER | 1 << 0x62 | 1 << 0xEF | 1 << 0xF3
    own.irr = 1 << LEFT_OVER | 1 << 0x55 | 1 << 0xEF


def high_priority(m: Machine) -> None:
    apic(m, lapic.TPR, 0xF0)


def pending_on_ioapic(m: Machine) -> None:
    pins = m.platform.ioapic.s.redirection
    pins[2] = 1 << 15 | 1 << 14 | LEFT_OVER  # level, waits for an EOI that nobody will give
    pins[4] = 1 << 15 | 1 << 13 | 1 << 14 | 0x62
    pins[9] = LEFT_OVER
    pins[16] = 1 << 15 | 0x71


def hpet_replaces(m: Machine) -> None:
    def put(register: int, value: int) -> None:
        m.platform.mmio_write(0, hpet.BASE + register, 8, value, 0)

    for n in range(hpet.TIMERS):
        level = hpet.LEVEL if n == 2 else 0
        put(0x100 + 0x20 * n, hpet.INT_ENABLE | hpet.PERIODIC | hpet.VAL_SET | level | 20 << 9)
        put(0x108 + 0x20 * n, 1000)
    put(hpet.MAIN_COUNTER, 0xFFFF_FF00)
    put(hpet.GENERAL_CONFIG, hpet.ENABLE | hpet.LEGACY)


def pic_in_use(m: Machine) -> None:
    for port, value in ((0x20, 0x11), (0x21, 0x08), (0x21, 4), (0x21, 1), (0x21, 0)):
        m.bus.port_write(port, 1, value, 0)
    for port, value in ((0xA0, 0x11), (0xA1, 0x70), (0xA1, 2), (0xA1, 1), (0xA1, 0)):
        m.bus.port_write(port, 1, value, 0)
    for port, value in ((0x43, 0x34), (0x40, 0x00), (0x40, 0x04)):  # the 8254, a thousand times a second
        m.bus.port_write(port, 1, value, 0)
    apic(m, lapic.LVT_LINT0, lapic.EXTINT << 8)


STATES: dict[str, Callable[[Machine], None]] = {
    f.__name__: f
    for f in (
        x2apic, apic_off, apic_soft_off, timer_runs, tsc_deadline, in_service, high_priority,
        pending_on_ioapic, hpet_replaces, pic_in_use,
    )
}  # fmt: skip


def everything(m: Machine) -> None:
    x2apic(m)
    for name, make in STATES.items():
        if name not in ("x2apic", "apic_off", "apic_soft_off"):
            make(m)


def plain(_: Machine) -> None:
    """As firmware leaves it: what the others are compared with."""


@functools.cache
def plain_text(release: str) -> str:
    return on_luemu(release, "selftest=on", prepare=plain).text


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("state", [*STATES.values(), everything], ids=lambda f: f.__name__)
def test_state_left_behind(state: Callable[[Machine], None], release: str) -> None:
    run = on_luemu(release, "selftest=on", prepare=state)
    assert run.stop.kind == StopKind.POWER_OFF, f"{run.stop}\n{run.text[-1500:]}"
    for part in ("traps", "sched"):
        assert re.search(rf"^selftest {part}: \d+ checks, 0 failed$", run.text, re.MULTILINE), run.text
    assert run.text == plain_text(release), "what is left behind shows"


def test_the_states_are_what_they_say() -> None:
    """Before the kernel runs: otherwise the test above would test nothing."""
    with Machine(128 << 20) as m:
        everything(m)
        own = m.platform.lapics[0]
        assert own.x2apic and own.s.isr and own.s.irr and own.s.tpr == 0xF0
        assert own.s.lvt[0] >> 17 == 2
        assert m.platform.ioapic.s.redirection[4] >> 14 & 1
        assert m.platform.hpet.s.config == hpet.ENABLE | hpet.LEGACY
        assert m.platform.mmio_read(0, ioapic.BASE, 4, 0) is not None
