"""MC146818 by its data sheet. Tick 0 is 2026-01-01 00:00:00, a Thursday."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.devices.rtc import Rtc
from tests.devices.rig import Rig, Wire

EPOCH = 1_767_225_600
S = 1_000_000_000


class Clock(Rig):
    def __init__(self, epoch: int = EPOCH, low: int = 0, high: int = 0) -> None:
        super().__init__()
        self.wire = Wire()
        self.rtc = Rtc(self.clock, self.wire, epoch, low, high)
        self.add(self.rtc)

    def get(self, index: int) -> int:
        self.outb(0x70, index)
        return self.inb(0x71)

    def set(self, index: int, value: int) -> None:
        self.outb(0x70, index)
        self.outb(0x71, value)

    def time(self) -> list[int]:
        """Century, year, month, day, hour, minute, second, weekday as the cells show them."""
        return [self.get(i) for i in (0x32, 9, 8, 7, 4, 2, 0, 6)]


@pytest.fixture
def c() -> Clock:
    return Clock()


def test_the_epoch_in_bcd(c: Clock) -> None:
    assert c.time() == [0x20, 0x26, 1, 1, 0, 0, 0, 5]
    c.to(((23 * 60 + 59) * 60 + 58) * S)
    assert c.time() == [0x20, 0x26, 1, 1, 0x23, 0x59, 0x58, 5]
    c.after(2 * S)
    assert c.time() == [0x20, 0x26, 1, 2, 0, 0, 0, 6]


@given(st.integers(0, 7_000_000_000))
def test_the_calendar_agrees_with_python(second: int) -> None:
    c = Clock(second)
    c.set(0x0B, 0x06)
    d = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=second)
    weekday = d.isoweekday() % 7 + 1
    assert c.time() == [d.year // 100, d.year % 100, d.month, d.day, d.hour, d.minute, d.second, weekday]


@given(st.integers(0, 7_000_000_000), st.booleans(), st.booleans())
def test_a_date_written_is_the_date_read(second: int, binary: bool, twelve: bool) -> None:
    a, b = Clock(second), Clock(0)
    mode = (4 if binary else 0) | (0 if twelve else 2)
    a.set(0x0B, mode)
    b.set(0x0B, 0x80 | mode)
    for index in (0x32, 9, 8, 7, 4, 2, 0, 6):
        b.set(index, a.get(index))
    b.set(0x0B, mode)
    a.after(3 * S)
    b.after(3 * S)
    assert a.time() == b.time()


def test_twelve_hour_mode(c: Clock) -> None:
    c.set(0x0B, 0)
    shown = []
    for _ in range(24):
        shown.append(c.get(4))
        c.after(3600 * S)
    morning = [0x12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0x11]
    assert shown == morning + [h | 0x80 for h in morning]


def test_set_freezes_and_release_goes_on_at_the_same_phase(c: Clock) -> None:
    c.to(S // 4)
    c.set(0x0B, 0x82)
    c.set(0, 0x30)
    c.to(10 * S)
    assert c.get(0) == 0x30
    c.to(10 * S + S // 2)
    c.set(0x0B, 0x02)
    assert c.get(0) == 0x30
    c.to(11 * S)
    assert c.get(0) == 0x31


def test_one_cell_can_be_written_while_running(c: Clock) -> None:
    c.to(5 * S + S // 2)
    c.set(2, 0x45)
    assert c.time()[4:7] == [0, 0x45, 5]


def test_the_weekday_is_a_counter_of_its_own(c: Clock) -> None:
    c.set(6, 1)
    assert c.time() == [0x20, 0x26, 1, 1, 0, 0, 0, 1]
    c.after(86_400 * S)
    assert c.get(6) == 2


def test_update_in_progress_covers_the_end_of_the_second(c: Clock) -> None:
    assert not c.get(0x0A) & 0x80
    c.to(S - 2_228_001)
    assert not c.get(0x0A) & 0x80
    c.to(S - 2_228_000)
    assert c.get(0x0A) & 0x80
    assert c.get(0) == 0
    c.to(S)
    assert not c.get(0x0A) & 0x80
    assert c.get(0) == 1
    c.to(2 * S - 1)
    c.set(0x0B, 0x82)
    assert not c.get(0x0A) & 0x80, "SET stops updates"


def test_divider_reset_holds_time_and_starts_half_a_second_early(c: Clock) -> None:
    c.to(S // 3)
    c.set(0x0A, 0x76)
    c.to(20 * S)
    assert c.get(0) == 0
    c.set(0x0A, 0x26)
    c.to(20 * S + S // 2 - 1)
    assert c.get(0) == 0
    c.to(20 * S + S // 2)
    assert c.get(0) == 1


def test_flags_set_without_interrupts_and_clear_on_read(c: Clock) -> None:
    assert c.clock.state() == [], "no events while no interrupt is enabled"
    c.to(S)
    assert c.get(0x0C) == 0x50, "a period and an update; the alarm of 00:00:00 is a day away"
    assert c.get(0x0C) == 0


def test_alarm_flag_alone(c: Clock) -> None:
    c.set(0x0A, 0x20)  # no periodic rate
    for index, value in ((1, 5), (3, 0), (5, 0)):
        c.set(index, value)
    c.get(0x0C)
    c.to(4 * S)
    assert c.get(0x0C) == 0x10
    c.to(5 * S)
    assert c.get(0x0C) == 0x30
    assert c.wire.changes == []


@pytest.mark.parametrize("rate, hertz", [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates(c: Clock, rate: int, hertz: int) -> None:
    c.set(0x0A, 0x20 | rate)
    c.set(0x0B, 0x42)
    for n in range(1, 6):
        assert c.idle() == -(-n * S // hertz)
        assert c.wire.level == 1
        assert c.get(0x0C) & 0xE0 == 0xC0
        assert c.wire.level == 0


def test_no_rate_no_periodic_interrupt(c: Clock) -> None:
    c.set(0x0A, 0x20)
    c.set(0x0B, 0x42)
    assert c.clock.state() == []


def test_an_unread_interrupt_keeps_the_line_and_schedules_nothing(c: Clock) -> None:
    c.set(0x0B, 0x42)
    c.idle()
    assert c.wire.level == 1 and c.clock.state() == []
    c.after(S)
    assert c.get(0x0C) & 0xC0 == 0xC0
    assert c.wire.level == 0 and c.clock.state() != []


def test_update_interrupt_every_second(c: Clock) -> None:
    c.to(S // 2)
    c.set(0x0A, 0x20)
    c.set(0x0B, 0x12)
    assert c.idle() == S
    assert c.get(0x0C) & 0x90 == 0x90
    assert c.idle() == 2 * S


def test_set_clears_uie(c: Clock) -> None:
    c.set(0x0B, 0x12)
    c.set(0x0B, 0x92)
    assert c.get(0x0B) == 0x82
    c.set(0x0B, 0x02)
    assert c.clock.state() == []


@pytest.mark.parametrize(
    "hour, minute, second, expected",
    [
        (0x12, 0x34, 0x56, (12 * 60 + 34) * 60 + 56),
        (0xFF, 0xFF, 0x07, 7),
        (0xC0, 0x02, 0x03, 123),
        (0xFF, 0x03, 0xFF, 180),
        (0x01, 0xFF, 0xC5, 3600),
        (0x00, 0x00, 0x00, 86_400),
        (0xFF, 0xFF, 0xFF, 1),
    ],
)
def test_alarm_interrupt(c: Clock, hour: int, minute: int, second: int, expected: int) -> None:
    c.set(0x0A, 0x20)
    for index, value in ((5, hour), (3, minute), (1, second)):
        c.set(index, value)
    c.set(0x0B, 0x22)
    assert c.idle() == expected * S
    assert c.get(0x0C) == 0xB0


def test_an_alarm_that_never_comes_has_no_event(c: Clock) -> None:
    c.set(1, 0x75)
    c.set(0x0B, 0x22)
    assert c.clock.state() == []


def test_alarm_repeats_after_wildcards(c: Clock) -> None:
    c.set(0x0A, 0x20)
    for index, value in ((5, 0xFF), (3, 0xFF), (1, 0x30)):
        c.set(index, value)
    c.set(0x0B, 0x22)
    ticks = []
    for _ in range(3):
        ticks.append(c.idle())
        c.get(0x0C)
    assert ticks == [30 * S, 90 * S, 150 * S]


def test_registers_c_and_d_are_read_only(c: Clock) -> None:
    c.set(0x0D, 0)
    c.set(0x0C, 0xFF)
    assert c.get(0x0D) == 0x80
    assert c.get(0x0C) == 0


def test_ram_index_and_upper_bank(c: Clock) -> None:
    c.set(0x40, 0x12)
    c.outb(0x72, 0x40)
    c.outb(0x73, 0x34)
    assert c.get(0x40) == 0x12
    assert c.inb(0x73) == 0x34
    assert c.get(0xC0) == 0x12, "bit 7 of the index masks NMI"
    assert c.rtc.s.nmi_masked
    assert c.inb(0x70) == 0xFF, "write-only"


def test_memory_size_cells_as_a_pc_bios_leaves_them() -> None:
    c = Clock(low=2 << 30, high=6 << 30)

    def word(i: int) -> int:
        return c.get(i) | c.get(i + 1) << 8

    assert word(0x15) == 640
    assert word(0x17) == word(0x30) == 0xFFFF
    assert word(0x34) == ((2 << 30) - (16 << 20)) >> 16
    assert word(0x5B) | c.get(0x5D) << 16 == (6 << 30) >> 16
    assert c.get(0x2E) << 8 | c.get(0x2F) == sum(c.get(i) for i in range(0x10, 0x2E))


def test_reset_keeps_time_and_ram_but_no_interrupts(c: Clock) -> None:
    c.set(0x40, 9)
    c.set(0x0B, 0x42)
    c.idle()
    c.rtc.reset(c.now)
    assert c.wire.level == 0 and c.clock.state() == []
    assert c.get(0x0B) == 0x02
    assert c.get(0x40) == 9
    c.to(7 * S)
    assert c.get(0) == 7
