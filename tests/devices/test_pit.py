"""8254 by the mode tables and figures of its data sheet, in CLK pulses counted from the load."""

from __future__ import annotations

import pytest

from emu.devices.pit import Pit, clocks_at, tick_of_clock
from tests.devices.rig import Rig, Wire

CONTROL = 0x43


class Timer(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire()
        self.pit = Pit(self.clock, self.wire)
        self.add(self.pit)
        self.outb(0x61, 1)  # gate 2 open
        self.start = 0

    def program(self, counter: int, mode: int, count: int, bcd: int = 0, access: int = 3) -> None:
        self.outb(CONTROL, counter << 6 | access << 4 | mode << 1 | bcd)
        self.count(counter, count, access)

    def count(self, counter: int, count: int, access: int = 3) -> None:
        if access & 1:
            self.outb(0x40 + counter, count & 0xFF)
        if access & 2:
            self.outb(0x40 + counter, count >> 8)
        self.start = clocks_at(self.now)

    def clk(self, pulses: int) -> None:
        """Go to `pulses` CLKs after the last load."""
        self.to(max(self.now, tick_of_clock(self.start + pulses)))

    def latch(self, counter: int = 2) -> int:
        self.outb(CONTROL, counter << 6)
        return self.inb(0x40 + counter) | self.inb(0x40 + counter) << 8

    def out(self) -> int:
        return self.inb(0x61) >> 5 & 1

    def gate(self, level: int) -> None:
        self.outb(0x61, level)
        self.start = clocks_at(self.now)

    def trace(self, pulses: int) -> list[tuple[int, int]]:
        """(CE, OUT) of counter 2 after 0, 1, ... pulses."""
        out = []
        for n in range(pulses):
            self.clk(n)
            out.append((self.latch(), self.out()))
        return out


@pytest.fixture
def t() -> Timer:
    return Timer()


def ce(trace: list[tuple[int, int]]) -> list[int]:
    return [c for c, _ in trace]


def outs(trace: list[tuple[int, int]]) -> str:
    return "".join(str(o) for _, o in trace)


def test_clock_is_exactly_105_88_mhz() -> None:
    assert clocks_at(88_000) == 105
    assert clocks_at(88_000 * 10**9) == 105 * 10**9
    for clock in range(300):
        assert clocks_at(tick_of_clock(clock)) == clock
        assert clock == 0 or clocks_at(tick_of_clock(clock) - 1) == clock - 1


def test_mode_0_figure(t: Timer) -> None:
    t.program(2, 0, 4)
    trace = t.trace(7)
    assert ce(trace) == [4, 3, 2, 1, 0, 0xFFFF, 0xFFFE]
    assert outs(trace) == "0000111"


def test_mode_0_gate_suspends_counting(t: Timer) -> None:
    t.program(2, 0, 3)
    t.clk(1)
    t.gate(0)
    t.clk(50)
    assert (t.latch(), t.out()) == (2, 0)
    t.gate(1)
    assert outs(t.trace(4)) == "0011"


def test_mode_0_new_count_restarts(t: Timer) -> None:
    t.program(2, 0, 3, access=1)
    t.clk(2)
    t.count(2, 2, access=1)
    assert t.inb(0x42) == 2
    assert outs(t.trace(4)) == "0011"


def test_mode_0_first_byte_stops_counting_and_drops_out(t: Timer) -> None:
    t.program(2, 0, 2)
    t.clk(5)
    assert t.out() == 1
    t.outb(0x42, 9)
    assert t.out() == 0
    held = t.latch()
    t.after(100_000)
    assert t.latch() == held
    t.outb(0x42, 0)
    assert t.latch() == 9


def test_mode_0_count_written_with_gate_low_is_loaded_but_does_not_count(t: Timer) -> None:
    t.outb(0x61, 0)
    t.program(2, 0, 5)
    t.clk(20)
    assert (t.latch(), t.out()) == (5, 0)
    t.gate(1)
    t.clk(5)
    assert t.out() == 1, "N pulses after the gate, without one more for the load"


def test_mode_1_one_shot_waits_for_the_trigger(t: Timer) -> None:
    t.program(2, 1, 3)
    assert t.out() == 1
    t.clk(10)
    assert t.out() == 1
    t.gate(0)
    assert t.out() == 1, "a falling gate does nothing"
    t.gate(1)
    trace = t.trace(6)
    assert outs(trace) == "000111"
    assert ce(trace) == [3, 2, 1, 0, 0xFFFF, 0xFFFE]


def test_mode_1_retrigger_makes_the_pulse_longer_and_a_new_count_waits(t: Timer) -> None:
    t.program(2, 1, 3)
    t.gate(0)
    t.gate(1)
    t.clk(2)
    t.count(2, 5)
    assert t.latch() == 1, "the pulse goes on with the old count"
    t.gate(0)
    t.gate(1)
    assert outs(t.trace(7)) == "0000011"


def test_mode_2_figure(t: Timer) -> None:
    t.program(2, 2, 3)
    trace = t.trace(8)
    assert ce(trace) == [3, 2, 1, 3, 2, 1, 3, 2]
    assert outs(trace) == "11011011"


def test_mode_2_gate_low_forces_out_high_and_its_rise_reloads(t: Timer) -> None:
    t.program(2, 2, 3)
    t.clk(2)
    assert t.out() == 0
    t.gate(0)
    assert t.out() == 1
    t.clk(9)
    assert t.latch() == 1, "counting is disabled"
    t.gate(1)
    assert ce(t.trace(4)) == [3, 2, 1, 3]


def test_mode_2_new_count_waits_for_the_end_of_the_period(t: Timer) -> None:
    t.program(2, 2, 4)
    t.clk(1)
    start = t.start
    t.count(2, 2)
    t.start = start
    assert ce(t.trace(9))[1:] == [3, 2, 1, 2, 1, 2, 1, 2]


def test_mode_2_trigger_takes_the_new_count_at_once(t: Timer) -> None:
    t.program(2, 2, 100)
    t.clk(1)
    t.count(2, 3)
    t.gate(0)
    t.gate(1)
    assert ce(t.trace(4)) == [3, 2, 1, 3]


@pytest.mark.parametrize(
    "count, contents, levels",
    [
        (4, [4, 2, 4, 2, 4, 2, 4, 2, 4, 2], "1100110011"),
        (5, [4, 2, 0, 4, 2, 4, 2, 0, 4, 2], "1110011100"),
    ],
)
def test_mode_3_figures(t: Timer, count: int, contents: list[int], levels: str) -> None:
    t.program(2, 3, count)
    trace = t.trace(10)
    assert ce(trace) == contents
    assert outs(trace) == levels


def test_mode_3_new_count_waits_for_the_end_of_the_half_period(t: Timer) -> None:
    t.program(2, 3, 8)
    start = t.start
    t.clk(1)
    t.count(2, 4)
    t.start = start
    assert outs(t.trace(12))[1:] == "11100110011"
    t.program(2, 3, 8)
    start = t.start
    t.clk(5)
    t.count(2, 4)
    t.start = start
    assert outs([(0, 0)] * 5 + t.trace(14)[5:])[5:] == "000110011"


def test_mode_3_odd_count_taken_over_in_the_middle(t: Timer) -> None:
    t.program(2, 3, 8)
    start = t.start
    t.clk(1)
    t.count(2, 5)
    t.start = start
    assert outs(t.trace(14))[1:] == "1110011100111"


def test_mode_3_gate(t: Timer) -> None:
    t.program(2, 3, 4)
    t.clk(2)
    assert t.out() == 0
    t.gate(0)
    assert t.out() == 1
    t.gate(1)
    assert outs(t.trace(5)) == "11001"


def test_mode_4_strobe(t: Timer) -> None:
    t.program(2, 4, 3)
    trace = t.trace(6)
    assert ce(trace) == [3, 2, 1, 0, 0xFFFF, 0xFFFE]
    assert outs(trace) == "111011"


def test_mode_4_gate_suspends_and_a_new_count_restarts(t: Timer) -> None:
    t.program(2, 4, 3)
    t.clk(1)
    t.gate(0)
    t.clk(9)
    t.gate(1)
    assert outs(t.trace(4)) == "1101"
    t.count(2, 2)
    assert outs(t.trace(4)) == "1101"


def test_mode_5_strobe_after_a_trigger(t: Timer) -> None:
    t.program(2, 5, 3)
    t.clk(10)
    assert t.out() == 1
    t.gate(0)
    t.gate(1)
    assert outs(t.trace(6)) == "111011"
    t.gate(0)
    t.clk(2)
    t.gate(1)
    assert outs(t.trace(5)) == "11101", "retriggerable, and the gate's level does not matter"


def test_bcd_counts_in_tens(t: Timer) -> None:
    t.program(2, 0, 0x1000, bcd=1)
    trace = t.trace(3)
    assert ce(trace) == [0x1000, 0x0999, 0x0998]
    t.program(2, 0, 0, bcd=1)
    t.clk(1)
    assert t.latch() == 0x9999, "0 means 10000"
    t.clk(10_000)
    assert t.out() == 1


def test_zero_means_65536(t: Timer) -> None:
    t.program(2, 0, 0)
    assert t.latch() == 0
    t.clk(65_535)
    assert (t.latch(), t.out()) == (1, 0)
    t.clk(65_536)
    assert (t.latch(), t.out()) == (0, 1)


def test_latch_holds_until_read_and_a_second_latch_is_ignored(t: Timer) -> None:
    t.program(2, 2, 1000)
    t.outb(CONTROL, 0x80)
    t.clk(100)
    t.outb(CONTROL, 0x80)
    assert t.inb(0x42) | t.inb(0x42) << 8 == 1000
    assert t.inb(0x42) | t.inb(0x42) << 8 == 900, "unlatched: what is there now"


def test_one_byte_access_modes(t: Timer) -> None:
    t.program(2, 2, 0x0034, access=1)
    assert (t.inb(0x42), t.inb(0x42)) == (0x34, 0x34)
    t.program(2, 2, 0x1200, access=2)
    assert (t.inb(0x42), t.inb(0x42)) == (0x12, 0x12)


def test_read_back_status_comes_before_count(t: Timer) -> None:
    t.program(2, 3, 0x1000)
    t.outb(CONTROL, 0xC8)  # both, counter 2
    t.clk(10)
    assert t.inb(0x42) == 0x80 | 0x30 | 3 << 1
    assert t.inb(0x42) | t.inb(0x42) << 8 == 0x1000
    assert t.inb(0x42) | t.inb(0x42) << 8 == 0x1000 - 20


def test_null_count_until_the_count_is_loaded(t: Timer) -> None:
    def status() -> int:
        t.outb(CONTROL, 0xE8)
        return t.inb(0x42)

    t.outb(CONTROL, 0xB4)
    assert status() & 0x40
    t.count(2, 10)
    assert not status() & 0x40
    t.count(2, 20)
    assert status() & 0x40, "mode 2: not before the end of the period"
    t.clk(10)
    assert not status() & 0x40


def test_read_back_of_several_counters(t: Timer) -> None:
    t.program(0, 0, 7)
    t.program(1, 2, 9)
    t.outb(CONTROL, 0xD6)  # counts of counters 0 and 1
    t.after(100_000)
    assert t.inb(0x40) | t.inb(0x40) << 8 == 7
    assert t.inb(0x41) | t.inb(0x41) << 8 == 9


def test_control_port_reads_as_nothing(t: Timer) -> None:
    assert t.inb(CONTROL) == 0xFF


def test_modes_6_and_7_are_2_and_3(t: Timer) -> None:
    t.program(2, 6, 3)
    assert outs(t.trace(6)) == "110110"
    t.program(2, 7, 4)
    assert outs(t.trace(4)) == "1100"


def test_out0_drives_the_line_at_the_exact_ticks(t: Timer) -> None:
    t.program(0, 2, 1000)
    t.wire.changes.clear()
    for _ in range(4):
        t.idle()
    period = [(0, 999), (1, 1000), (0, 1999), (1, 2000)]
    assert t.wire.changes == [(level, tick_of_clock(t.start + n)) for level, n in period]
    t.program(0, 0, 500)
    assert t.wire.level == 0
    t.wire.changes.clear()
    while t.idle():
        pass
    assert t.wire.changes == [(1, tick_of_clock(t.start + 500))], "one shot, and then nothing is pending"


def test_out0_with_a_new_count_in_mid_period(t: Timer) -> None:
    t.program(0, 3, 100)
    start = t.start
    t.clk(10)
    t.count(0, 20)
    t.wire.changes.clear()
    while len(t.wire.changes) < 4:
        t.idle()
    expected = [(0, 50), (1, 60), (0, 70), (1, 80)]
    assert t.wire.changes == [(level, tick_of_clock(start + n)) for level, n in expected]


def test_control_word_stops_out0(t: Timer) -> None:
    t.program(0, 2, 100)
    t.outb(CONTROL, 0x30)
    assert t.clock.state() == []
    assert t.wire.level == 0


def test_port_61_keeps_four_bits_and_shows_refresh(t: Timer) -> None:
    t.outb(0x61, 0xFF)
    assert t.inb(0x61) & 0x0F == 0x0F
    assert t.inb(0x61) & 0xC0 == 0
    seen = set()
    for _ in range(4):
        t.after(15_086)
        seen.add(t.inb(0x61) & 0x10)
    assert seen == {0, 0x10}


def test_linux_fast_calibration_sees_the_count_right_after_writing_it(t: Timer) -> None:
    t.program(2, 0, 0xFFFF)
    t.inb(0x42)
    t.inb(0x42)
    t.inb(0x42)
    assert t.inb(0x42) == 0xFF


def test_reset_stops_everything(t: Timer) -> None:
    t.program(0, 3, 100)
    t.pit.reset(t.now)
    assert t.clock.state() == [] and t.wire.level == 0
