"""HPET by IA-PC HPET 1.0a, with q35's three timers at 100 MHz."""

from __future__ import annotations

import pytest

from emu.devices.hpet import Hpet
from tests.devices.rig import Rig

BASE = 0xFED00000
CONFIG, STATUS, COUNTER = BASE + 0x10, BASE + 0x20, BASE + 0xF0
PIN20 = 20 << 9


def timer(n: int) -> int:
    return BASE + 0x100 + 0x20 * n


class Board(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.pins: list[tuple[int, int, int]] = []
        self.legacy: list[tuple[int, int, int]] = []
        self.replaced: list[int] = []
        self.hpet = Hpet(
            self.clock,
            lambda timer, pin, level, now: self.pins.append((pin, level, now)),
            lambda timer, level, now: self.legacy.append((timer, level, now)),
            lambda on, now: self.replaced.append(on),
        )
        self.add(self.hpet)

    def counter(self) -> int:
        return self.read(COUNTER, 8)


@pytest.fixture
def h() -> Board:
    return Board()


def test_identity_says_what_the_acpi_table_says(h: Board) -> None:
    assert h.read(BASE, 8) == 10_000_000 << 32 | 0x8086A201
    assert h.read(BASE + 4) == 10_000_000
    for n in range(3):
        assert h.read(timer(n), 8) == 0x00FF0104_00000030


def test_counter_runs_only_while_enabled_and_can_be_set_while_stopped(h: Board) -> None:
    h.to(1000)
    assert h.counter() == 0
    h.write(CONFIG, 1)
    h.to(1000 + 99)
    assert h.counter() == 9
    h.write(CONFIG, 0)
    h.to(5000)
    assert h.counter() == 9
    h.write(COUNTER, 0xFFFF_FFFF_FFFF_FFFE, 8)
    h.write(CONFIG, 1)
    h.after(30)
    assert h.counter() == 1, "64 bits, then it wraps"


def test_halves_of_the_counter(h: Board) -> None:
    h.write(COUNTER + 4, 0x12)
    h.write(COUNTER, 0x34)
    assert h.counter() == 0x12_0000_0034
    assert (h.read(COUNTER), h.read(COUNTER + 4)) == (0x34, 0x12)


def test_narrow_and_misaligned_writes_do_nothing(h: Board) -> None:
    h.write(CONFIG, 1, 1)
    h.write(CONFIG, 1, 2)
    assert h.read(CONFIG) == 0


def test_one_shot_edge(h: Board) -> None:
    h.write(timer(0), PIN20 | 4)
    h.write(timer(0) + 8, 100, 8)
    h.write(CONFIG, 1)
    assert h.idle() == 1000
    assert h.pins == [(20, 1, 1000)]
    assert h.read(STATUS) == 0, "edge-triggered interrupts leave no status"
    assert h.clock.state() == [], "64 bits: it will not come again in this life"


def test_a_comparator_of_the_current_count_waits_for_the_wrap(h: Board) -> None:
    h.write(timer(0), PIN20 | 4 | 0x100)
    h.write(CONFIG, 1)
    h.to(500)
    h.write(timer(0) + 8, 50)
    assert h.idle() == 500 + (10 << 32)
    assert h.idle() == 500 + 2 * (10 << 32), "in 32-bit mode it matches each time around"


def test_a_comparator_in_the_past_waits_for_the_wrap(h: Board) -> None:
    h.write(timer(0), PIN20 | 4 | 0x100)
    h.write(CONFIG, 1)
    h.to(500)
    h.write(timer(0) + 8, 49)
    assert h.idle() == (10 << 32) + 490


def test_linux_periodic_set_up(h: Board) -> None:
    """Accumulator with VAL_SET, then the period, as hpet_clkevt_set_state_periodic writes them."""
    h.write(CONFIG, 3)
    h.to(1000)
    h.write(timer(0), 4 | 8 | 0x40 | 0x100)
    h.write(timer(0) + 8, h.read(COUNTER) + 400)
    h.write(timer(0) + 8, 400)
    assert [h.idle() for _ in range(3)] == [5000, 9000, 13000]
    assert [c for c in h.legacy if c[1]] == [(0, 1, 5000), (0, 1, 9000), (0, 1, 13000)]
    assert h.read(timer(0) + 8) == 1700, "the comparator shows the next match"


def test_val_set_clears_itself(h: Board) -> None:
    h.write(timer(0), 8 | 0x40)
    assert h.read(timer(0)) & 0x40
    h.write(timer(0) + 8, 5)
    assert not h.read(timer(0)) & 0x40


def test_a_masked_periodic_timer_moves_on_without_events(h: Board) -> None:
    h.write(CONFIG, 1)
    h.write(timer(0), PIN20 | 8 | 0x40)
    h.write(timer(0) + 8, 10, 8)
    h.write(timer(0) + 8, 10, 8)
    assert h.clock.state() == []
    h.to(1234)
    assert h.read(timer(0) + 8, 8) == 130
    h.write(timer(0), PIN20 | 8 | 4)
    assert h.idle() == 1300


def test_level_interrupt_stays_until_its_status_is_cleared(h: Board) -> None:
    h.write(timer(1), PIN20 | 2 | 4)
    h.write(timer(1) + 8, 10, 8)
    h.write(CONFIG, 1)
    h.idle()
    assert h.pins == [(20, 1, 100)]
    assert h.read(STATUS) == 2
    h.write(STATUS, 1)
    assert h.pins == [(20, 1, 100)], "another timer's bit"
    h.write(STATUS, 2)
    assert h.pins[-1] == (20, 0, 100)
    assert h.read(STATUS) == 0


def test_level_status_sets_without_interrupt_enable(h: Board) -> None:
    h.write(timer(1), PIN20 | 2)
    h.write(timer(1) + 8, 10, 8)
    h.write(CONFIG, 1)
    h.idle()
    assert h.read(STATUS) == 2 and h.pins == []
    h.write(timer(1), PIN20 | 2 | 4)
    assert h.pins == [(20, 1, 100)]


def test_stopping_the_block_releases_its_lines(h: Board) -> None:
    h.write(timer(0), PIN20 | 4)
    h.write(timer(0) + 8, 10, 8)
    h.write(CONFIG, 1)
    h.idle()
    h.write(CONFIG, 0)
    assert h.pins[-1] == (20, 0, 100)
    assert h.clock.state() == []


def test_a_pin_that_is_not_offered_does_not_stick(h: Board) -> None:
    h.write(timer(0), 20 << 9)
    h.write(timer(0), 5 << 9)
    assert h.read(timer(0)) >> 9 & 31 == 20


def test_legacy_replacement_moves_the_line(h: Board) -> None:
    h.write(timer(0), PIN20 | 4 | 2)
    h.write(timer(0) + 8, 10, 8)
    h.write(CONFIG, 1)
    h.idle()
    h.write(CONFIG, 3)
    assert h.replaced == [1]
    assert h.pins[-1] == (20, 0, 100), "released where it was"
    assert (0, 1, 100) in h.legacy, "and asserted where it is now"
    h.write(CONFIG, 1)
    assert h.replaced == [1, 0]
    assert h.pins[-1] == (20, 1, 100)


def test_timer_2_is_never_legacy(h: Board) -> None:
    h.write(timer(2), PIN20 | 4)
    h.write(timer(2) + 8, 10, 8)
    h.write(CONFIG, 3)
    h.idle()
    assert h.pins == [(20, 1, 100)]
    assert not any(level for _, level, _ in h.legacy)


def test_reserved_registers_read_zero(h: Board) -> None:
    assert [h.read(BASE + o) for o in (0x08, 0x18, 0x30, 0x110, 0x160, 0x3F8)] == [0] * 6


def test_reset(h: Board) -> None:
    h.write(timer(0), PIN20 | 4)
    h.write(timer(0) + 8, 10, 8)
    h.write(CONFIG, 3)
    h.idle()
    h.hpet.reset(h.now)
    assert h.counter() == 0 and h.read(CONFIG) == 0 and h.clock.state() == []
    assert h.legacy[-1][1] == 0 and h.replaced[-1] == 0
