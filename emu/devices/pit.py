"""8254 programmable interval timer (Intel 82C54 data sheet, 231244) and port 0x61 of the PC around it.

Knows its three counters, its clock of 105/88 MHz (1.193182 MHz) as a function of virtual time, and the line
that OUT0 drives. It may not know which interrupt controller listens, nor make a sound.

Everything is arithmetic on the index of the last CLK pulse, ``now * 105 // 88000``. A counting element is
never stepped: while it counts, its contents follow from when it was loaded and with what. Only counter 0
has events, at the changes of OUT0, because only OUT0 drives a line.

The data sheet loads CE with the CLK pulse after a write or a trigger. An I/O cycle of a PC takes longer than
a CLK period, so that pulse falls within the access: here the count is in CE when the access is over, and
drivers rely on it (they read a counter back right after they wrote it). A counter that already counts in
mode 2 or 3 takes a new count at the end of the period or half period: until then it is `next_value`, due at
`next_at`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emu.clock import Clock
from emu.devices.device import Device, Line, Region

CLOCK_NUMERATOR, CLOCK_DENOMINATOR = 105, 88_000
"""CLK pulses per tick (nanosecond): 14.318182 MHz / 12, exactly 105/88 MHz."""

LSB, MSB, BOTH = 1, 2, 3
_NOTHING = -1
_REFRESH_CLOCKS = 18  # counter 1 of the PC/AT: one refresh every 18 pulses, which toggles port 0x61 bit 4


def clocks_at(now: int) -> int:
    """How many CLK pulses have happened at tick ``now``."""
    return now * CLOCK_NUMERATOR // CLOCK_DENOMINATOR


def tick_of_clock(clock: int) -> int:
    """First tick at which pulse ``clock`` has happened."""
    return -(-clock * CLOCK_DENOMINATOR // CLOCK_NUMERATOR)


@dataclass
class Counter:
    """One counter. "CE" is the counting element and "CR" the count register of the data sheet."""

    mode: int = 0
    access: int = BOTH
    bcd: bool = False
    gate: int = 1
    count: int = 0  # CR: 1..65536 (or 10000), 0 when none was written since the control word
    null: bool = True  # NULL COUNT: CR was written and CE not yet loaded
    loaded: bool = False  # CE was loaded (modes 1 and 5: triggered) since the control word
    running: bool = False
    start: int = 0  # CLK index at which CE was `value`, while running
    value: int = 0  # what CE started from, or holds when not running
    next_at: int = _NOTHING  # CLK index at which CE is loaded with `next_value`
    next_value: int = 0
    write_low: int = _NOTHING  # first byte of a two-byte count
    read_high: bool = False  # the next read of a two-byte count gives the high byte
    latched: int = _NOTHING
    status: int = _NOTHING


@dataclass
class PitState:
    """Three counters and port 0x61."""

    counters: list[Counter] = field(default_factory=lambda: [Counter(), Counter(), Counter(gate=0)])
    port61: int = 0  # bits 3:0
    out0: int = 0


class Pit(Device):
    """The 8254; ``line`` is OUT0."""

    s: PitState

    def __init__(self, clock: Clock, line: Line, name: str = "pit") -> None:
        super().__init__(name, clock)
        self.line = line
        self.s = PitState()

    def regions(self) -> Sequence[Region]:
        """0x40 to 0x43, and 0x61."""
        return (
            Region("io", 0x40, 4, self.read, self.write, width=1),
            Region("io", 0x61, 1, self.read_port61, self.write_port61, width=1),
        )

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        counters = [Counter(**counter) for counter in state["counters"]]
        self.s = PitState(counters, state["port61"], state["out0"])

    def reset(self, now: int) -> None:
        """Power-on: nothing counts until it is programmed (data sheet, "Programming the 82C54")."""
        self.cancel("out0")
        self.s = PitState(out0=self.s.out0)
        self._drive_out0(clocks_at(now), now)

    def event(self, event: str, now: int) -> None:
        """OUT0 changes, or counter 0 takes over a new count."""
        self._drive_out0(clocks_at(now), now)

    # --- ports ---

    def read(self, offset: int, size: int, now: int) -> int:
        """Read a counter. The hottest register of the machine: Linux polls it to calibrate the TSC."""
        if offset == 3:
            return 0xFF  # the data sheet's "no operation (three-state)"
        c = self.s.counters[offset]
        if c.status != _NOTHING:
            value, c.status = c.status, _NOTHING
            return value
        value = c.latched
        if value == _NOTHING:
            clock = now * CLOCK_NUMERATOR // CLOCK_DENOMINATOR
            if _NOTHING < c.next_at <= clock:
                _load(c)
            value = _contents(c, clock)
        if c.access == BOTH:
            c.read_high = not c.read_high
            if c.read_high:
                return value & 0xFF
            c.latched = _NOTHING
            return value >> 8
        c.latched = _NOTHING
        return value & 0xFF if c.access == LSB else value >> 8

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        """Write a count or a control word."""
        clock = clocks_at(now)
        for c in self.s.counters:
            if _NOTHING < c.next_at <= clock:
                _load(c)
        if offset != 3:
            self._write_count(self.s.counters[offset], value, clock)
        elif value >> 6 == 3:
            self._read_back(value, clock)
        elif value & 0x30 == 0:
            _latch_count(self.s.counters[value >> 6], clock)
        else:
            _control(self.s.counters[value >> 6], value, clock)
        if offset == 0 or (offset == 3 and value >> 6 == 0):
            self._drive_out0(clock, now)

    def read_port61(self, offset: int, size: int, now: int) -> int:
        """Port 0x61: gate 2, speaker, NMI enables, refresh toggle, OUT2 (ICH9 data sheet 13.7.1)."""
        clock = clocks_at(now)
        c = self.s.counters[2]
        if _NOTHING < c.next_at <= clock:
            _load(c)
        return self.s.port61 | (clock // _REFRESH_CLOCKS & 1) << 4 | _output(c, clock) << 5

    def write_port61(self, offset: int, size: int, value: int, now: int) -> None:
        """Bit 0 is the gate of counter 2."""
        clock = clocks_at(now)
        c = self.s.counters[2]
        if _NOTHING < c.next_at <= clock:
            _load(c)
        self.s.port61 = value & 0x0F
        _set_gate(c, value & 1, clock)

    # --- commands ---

    def _read_back(self, value: int, clock: int) -> None:
        """Read-back command: latch count (bit 5 low) and status (bit 4 low) of the chosen counters."""
        for number, c in enumerate(self.s.counters):
            if not value & 2 << number:
                continue
            if not value & 0x20:
                _latch_count(c, clock)
            if not value & 0x10 and c.status == _NOTHING:
                c.status = (
                    _output(c, clock) << 7 | c.null << 6 | c.access << 4 | c.mode << 1 | (1 if c.bcd else 0)
                )

    @staticmethod
    def _write_count(c: Counter, value: int, clock: int) -> None:
        if c.access == BOTH:
            if c.write_low == _NOTHING:
                c.write_low = value
                if c.mode == 0:
                    # The first byte stops counting and takes OUT low at once (mode 0, note 1).
                    c.value, c.running, c.loaded = _held(c, clock), False, False
                    c.next_at = _NOTHING
                return
            value, c.write_low = value << 8 | c.write_low, _NOTHING
        elif c.access == MSB:
            value <<= 8
        if c.bcd:
            value = _from_bcd(value)
        c.count = value or (10_000 if c.bcd else 0x1_0000)
        c.null = True
        if c.mode in (1, 5):
            return  # waits for a trigger
        c.next_value = c.count
        if c.mode in (2, 3) and c.loaded:
            if c.running and c.next_at == _NOTHING:
                c.next_at = _period_end(c, clock)
        else:
            c.next_at = clock
            _load(c)

    def _drive_out0(self, clock: int, now: int) -> None:
        """Show OUT0 on the line and schedule its next change."""
        c = self.s.counters[0]
        if _NOTHING < c.next_at <= clock:
            _load(c)
        level = _output(c, clock)
        if level != self.s.out0:
            self.s.out0 = level
            self.line(level, now)
        change = _next_change(c, clock)
        if c.next_at != _NOTHING and (change == _NOTHING or c.next_at < change):
            change = c.next_at
        if change == _NOTHING:
            self.cancel("out0")
        else:
            self.at(tick_of_clock(change), "out0")


# --- one counter ---


def _control(c: Counter, value: int, clock: int) -> None:
    """A control word resets the counter's logic; CE keeps what it has until a count is written."""
    c.value = _held(c, clock)
    mode = value >> 1 & 7
    c.mode = mode if mode < 6 else mode - 4
    c.access = value >> 4 & 3
    c.bcd = bool(value & 1)
    c.count = 0
    c.null = True
    c.loaded = c.running = c.read_high = False
    c.next_at = c.write_low = c.latched = c.status = _NOTHING


def _latch_count(c: Counter, clock: int) -> None:
    """A latched count stays until it is read; a second latch command before that is ignored."""
    if c.latched == _NOTHING:
        c.latched = _contents(c, clock)


def _load(c: Counter) -> None:
    """The CLK pulse at which CE is loaded."""
    at, value = c.next_at, c.next_value
    start = at
    if c.mode == 3 and c.running and (at - c.start) % c.value == (c.value + 1) // 2:
        start -= (value + 1) // 2  # taken over in mid-period: the low half follows
    c.start, c.value = start, value
    c.next_at = _NOTHING
    c.null = False
    c.loaded = True
    c.running = bool(c.gate)


def _set_gate(c: Counter, gate: int, clock: int) -> None:
    if gate == c.gate:
        return
    c.gate = gate
    if c.mode in (0, 4):  # the gate enables counting
        if gate and c.loaded:
            c.start, c.running = clock, True
        elif not gate and c.running:
            c.value, c.running = c.value - (clock - c.start), False
    elif c.mode in (2, 3):  # it enables counting, its rising edge reloads, and OUT is high while it is low
        if gate and c.count:
            c.next_at, c.next_value = clock, c.count
            _load(c)
        elif not gate and c.running:
            c.value, c.running = _held(c, clock), False
            c.next_at = _NOTHING  # what waited for the end of the period now waits for the trigger
    elif gate and c.count:  # modes 1 and 5: a trigger
        c.next_at, c.next_value = clock, c.count
        _load(c)


def _held(c: Counter, clock: int) -> int:
    """CE as a plain number, for a counter that is about to stop."""
    if not c.running:
        return c.value
    elapsed = clock - c.start
    if c.mode == 2:
        return c.value - elapsed % c.value
    if c.mode == 3:
        phase = elapsed % c.value
        half = (c.value + 1) // 2
        # Odd counts are loaded less one; CE steps by two (data sheet, mode 3).
        return (c.value & ~1) - 2 * (phase if phase < half else phase - half)
    return c.value - elapsed


def _contents(c: Counter, clock: int) -> int:
    """CE as it is read: 16 bits, binary or BCD."""
    value = c.value - (clock - c.start) if c.running and c.mode == 0 else _held(c, clock)
    return _to_bcd(value % 10_000) if c.bcd else value & 0xFFFF


def _output(c: Counter, clock: int) -> int:
    """Level of OUT."""
    mode = c.mode
    if not c.loaded:
        return 0 if mode == 0 else 1
    if mode == 2:
        return 0 if c.running and c.value > 1 and (clock - c.start) % c.value == c.value - 1 else 1
    if mode == 3:
        return 1 if not c.running or (clock - c.start) % c.value < (c.value + 1) // 2 else 0
    left = c.value - (clock - c.start) if c.running else c.value
    if mode == 0:
        return 1 if left <= 0 else 0
    if mode == 1:
        return 0 if left > 0 else 1
    return 0 if left == 0 else 1


def _next_change(c: Counter, clock: int) -> int:
    """CLK index of the next change of OUT if nothing is written, or -1."""
    if not c.running:
        return _NOTHING
    elapsed = clock - c.start
    if c.mode == 2:
        if c.value < 2:
            return _NOTHING
        phase = elapsed % c.value
        return clock + (1 if phase == c.value - 1 else c.value - 1 - phase)
    if c.mode == 3:
        if c.value < 2:
            return _NOTHING
        phase = elapsed % c.value
        half = (c.value + 1) // 2
        return clock + (half if phase < half else c.value) - phase
    left = c.value - elapsed
    if left > 0:
        return clock + left
    return clock + 1 if left == 0 and c.mode in (4, 5) else _NOTHING


def _period_end(c: Counter, clock: int) -> int:
    """CLK index at which a running mode 2 counter, or a half period of mode 3, ends."""
    phase = (clock - c.start) % c.value
    half = (c.value + 1) // 2
    if c.mode == 3 and phase < half:
        return clock + half - phase
    return clock + c.value - phase


def _to_bcd(value: int) -> int:
    return value // 1000 << 12 | value // 100 % 10 << 8 | value // 10 % 10 << 4 | value % 10


def _from_bcd(value: int) -> int:
    """Digits above nine are undefined by the data sheet; here they count as what they are."""
    return ((value >> 12) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15)) % 10_000
