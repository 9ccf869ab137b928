"""PM1, PM timer, GPE0, SCI, power-off, the ways to reset, and the swallowing ports."""

from __future__ import annotations

import pytest

from emu.bus import Bus
from emu.devices.acpipm import AcpiPm, ResetControl, pm_timer_at
from emu.devices.post import Post
from tests.devices.rig import Rig, Wire

STS, EN, CNT, TMR, GPE = 0x600, 0x602, 0x604, 0x608, 0x620
HALF = -(-(1 << 31) * 88_000 // 315)  # ticks until the timer's top bit changes


class Board(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.sci = Wire()
        self.power: list[tuple[str, int]] = []
        self.pm = AcpiPm(self.clock, self.sci, lambda kind, now: self.power.append((kind, now)))
        self.reset = ResetControl(self.clock, lambda kind, now: self.power.append((kind, now)))
        self.add(self.pm, self.reset, Post(self.clock))

    def inw(self, port: int) -> int:
        return self.bus.port_read(port, 2, self.now)

    def outw(self, port: int, value: int) -> None:
        self.bus.port_write(port, 2, value, self.now)

    def inl(self, port: int) -> int:
        return self.bus.port_read(port, 4, self.now)


@pytest.fixture
def b() -> Board:
    return Board()


def test_pm_timer_rate_and_width(b: Board) -> None:
    assert b.inl(TMR) == 0
    b.to(1_000_000_000)
    assert b.inl(TMR) == 3_579_545
    b.to(2 * HALF + 10**9)
    assert b.inl(TMR) == pm_timer_at(b.now) - (1 << 32)
    assert b.inb(TMR + 1) == b.inl(TMR) >> 8 & 0xFF
    b.bus.port_write(TMR, 4, 0, b.now)
    assert b.inl(TMR) != 0, "read-only"


def test_acpi_mode_is_always_on(b: Board) -> None:
    b.outw(CNT, 0)
    assert b.inw(CNT) == 1


def test_soft_off_needs_type_and_enable(b: Board) -> None:
    b.outw(CNT, 7 << 10)
    b.outw(CNT, 5 << 10 | 1 << 13)
    b.outw(CNT, 1 << 13)
    assert b.power == []
    b.to(5)
    b.outw(CNT, 7 << 10 | 1 << 13)
    assert b.power == [("off", 5)]
    assert b.inw(CNT) == 7 << 10 | 1, "SLP_EN reads 0"


def test_soft_off_by_a_32_bit_write(b: Board) -> None:
    b.bus.port_write(CNT, 4, 7 << 10 | 1 << 13, 0)
    assert b.power == [("off", 0)]


def test_power_button_raises_sci_until_cleared(b: Board) -> None:
    b.pm.press_power_button(b.now)
    assert b.inw(STS) == 0x100 and b.sci.level == 0
    b.outw(EN, 0x100)
    assert b.sci.level == 1
    b.outw(STS, 0x01)
    assert b.sci.level == 1, "another bit"
    b.outw(STS, 0x100)
    assert b.sci.level == 0 and b.inw(STS) == 0


def test_reserved_enable_bits_stay_zero(b: Board) -> None:
    b.outw(EN, 0xFFFF)
    assert b.inw(EN) == 0x0721


def test_timer_status_sets_with_the_top_bit(b: Board) -> None:
    b.to(HALF - 1)
    assert b.inw(STS) == 0
    b.to(HALF)
    assert b.inw(STS) == 1
    b.outw(STS, 1)
    assert b.inw(STS) == 0
    b.to(2 * HALF)
    assert b.inw(STS) == 1
    assert b.clock.state() == [], "no events while it cannot interrupt"


def test_timer_interrupt(b: Board) -> None:
    b.outw(EN, 1)
    assert b.idle() == HALF
    assert b.sci.level == 1
    b.outw(STS, 1)
    assert b.sci.level == 0
    b.outw(EN, 0)
    assert b.clock.state() == []


def test_general_purpose_events(b: Board) -> None:
    b.pm.set_gpe(9, b.now)
    assert b.inb(GPE + 1) == 0x02 and b.sci.level == 0
    b.outb(GPE + 8 + 1, 0x02)
    assert b.sci.level == 1
    b.outb(GPE + 1, 0x02)
    assert b.sci.level == 0
    assert b.inl(GPE + 8) == 0x200


def test_smi_registers_keep_what_is_written(b: Board) -> None:
    b.bus.port_write(0x630, 4, 0x12345678, 0)
    assert b.inl(0x630) == 0x12345678


def test_pm_reset(b: Board) -> None:
    b.outw(EN, 0x101)
    b.pm.press_power_button(b.now)
    b.pm.reset(b.now)
    assert (b.inw(STS), b.inw(EN), b.sci.level, b.clock.state()) == (0, 0, 0, [])


def test_reset_control_register(b: Board) -> None:
    for value, resets in ((0x02, 0), (0x06, 1), (0x08, 1), (0x0F, 2)):
        b.reset.write_cf9(value, b.now)
        assert len(b.power) == resets, hex(value)
    assert b.power[0] == ("reset", 0)
    b.reset.write_cf9(0x0A, b.now)
    assert b.reset.read_cf9(b.now) == 0x0A


def test_port_92(b: Board) -> None:
    assert b.inb(0x92) == 0x02
    b.outb(0x92, 0x02)
    assert b.power == []
    b.outb(0x92, 0x03)
    assert b.power == [("reset", 0)]


def test_keyboard_controller_reset_and_self_test(b: Board) -> None:
    assert b.inb(0x64) == 0x1C, "ready for a command, nothing to read"
    b.outb(0x60, 0)
    assert b.inb(0x64) == 0x14, "the last byte was data"
    b.outb(0x64, 0xAA)
    assert b.inb(0x64) & 1 and b.inb(0x60) == 0x55
    assert not b.inb(0x64) & 1
    b.outb(0x64, 0xAB)
    assert b.inb(0x60) == 0x01, "no keyboard"
    b.outb(0x64, 0xFF)
    assert b.power == []
    b.outb(0x64, 0xFE)
    assert b.power == [("reset", 0)]


def test_keyboard_controller_command_byte_and_output_port(b: Board) -> None:
    b.outb(0x64, 0x60)
    b.outb(0x60, 0x47)
    b.outb(0x64, 0x20)
    assert b.inb(0x60) == 0x47
    b.outb(0x64, 0xAD)
    b.outb(0x64, 0x20)
    assert b.inb(0x60) == 0x57
    b.outb(0x64, 0xD0)
    assert b.inb(0x60) == 0x03
    b.outb(0x60, 0x00)
    assert b.power == [], "data without a command goes to a keyboard that is not there"
    b.outb(0x64, 0xD1)
    b.outb(0x60, 0xFE)
    assert b.power == [("reset", 0)]


def test_post_and_delay_ports(b: Board) -> None:
    b.outb(0x80, 0x42)
    b.outb(0xED, 0x17)
    assert (b.inb(0x80), b.inb(0xED)) == (0x42, 0x17)
    assert b.bus.unclaimed == Bus().unclaimed
