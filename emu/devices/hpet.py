"""High precision event timers (IA-PC HPET specification 1.0a) with q35's parameters: 3 timers, 100 MHz.

Knows its 1 KiB of registers, virtual time, and three ways out: I/O APIC pins (``route``), the places of the
8254 and the RTC on IRQ 0 and 8 (``legacy``), and a notice that these places change hands (``replace``).
Message interrupts (FSB) are not offered.

The main counter follows from when it was started, and a periodic comparator from when it was last looked
at. A timer has an event only while a match can be seen from outside: a forgotten one does not keep an idle
machine busy.

Choices where the specification leaves one:

* A match is the counter *becoming* equal: a comparator written with the current count waits for the wrap.
* In periodic mode each write to the comparator sets the period; with VAL_SET it sets the comparator too,
  and that bit clears itself with the first such write of either half.
* An edge-triggered output rises at the match and stays high until the next match, or until the timer is
  reprogrammed: an 8259 needs the level to last until its acknowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emu.clock import Clock
from emu.devices.device import Device, Region

BASE = 0xFED0_0000
SIZE = 0x400
TICKS_PER_COUNT = 10
TIMERS = 3
ROUTES = 0x00FF_0104
"""I/O APIC pins that each timer may use: 2, 8 and 16 to 23."""

_PERIOD_FS = TICKS_PER_COUNT * 1_000_000
CAPABILITIES = _PERIOD_FS << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS - 1) << 8 | 0x01
"""Period in femtoseconds, vendor, legacy replacement, 64-bit counter, number of the last timer, revision."""

GENERAL_CAPS, GENERAL_CONFIG, GENERAL_STATUS, MAIN_COUNTER, FIRST_TIMER = 0x000, 0x010, 0x020, 0x0F0, 0x100
ENABLE, LEGACY = 1, 2
LEVEL, INT_ENABLE, PERIODIC, VAL_SET, MODE_32 = 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 8
_TIMER_CAPS = ROUTES << 32 | 1 << 5 | 1 << 4  # 64 bits wide, periodic
_TIMER_WRITABLE = 0x3E00 | MODE_32 | VAL_SET | PERIODIC | INT_ENABLE | LEVEL
_ALL = (1 << 64) - 1
_LOW = 0xFFFF_FFFF
_TOO_LATE = 1 << 63


@dataclass
class Timer:
    """One comparator."""

    config: int = 0
    comparator: int = _ALL
    period: int = 0
    seen: int = 0  # main counter up to which `comparator` has moved on
    output: int = 0


@dataclass
class HpetState:
    """Registers; the counter is ``counter`` at tick ``counter_at`` and runs while enabled."""

    config: int = 0
    status: int = 0
    counter: int = 0
    counter_at: int = 0
    timers: list[Timer] = field(default_factory=lambda: [Timer() for _ in range(TIMERS)])


class Hpet(Device):
    """One block of three timers."""

    s: HpetState

    def __init__(
        self,
        clock: Clock,
        route: Callable[[int, int, int, int], None],
        legacy: Callable[[int, int, int], None],
        replace: Callable[[int, int], None],
        name: str = "hpet",
    ) -> None:
        """``route(timer, pin, level, now)``, ``legacy(timer, level, now)``, ``replace(on, now)``."""
        super().__init__(name, clock)
        self.route = route
        self.legacy = legacy
        self.replace = replace
        self.s = HpetState()

    def regions(self) -> Sequence[Region]:
        """The register block."""
        return (Region("mmio", BASE, SIZE, self.read, self.write, width=8),)

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        super().load(state)
        self.s.timers = [Timer(**timer) for timer in state["timers"]]

    def reset(self, now: int) -> None:
        """Power-on."""
        for number in range(TIMERS):
            self._output(number, 0, now)
            self.cancel(f"timer{number}")
        self.replace(0, now)
        self.s = HpetState(counter_at=now)

    def event(self, event: str, now: int) -> None:
        """A timer's comparator matches."""
        number = int(event.removeprefix("timer"))
        t = self.s.timers[number]
        self._advance(now)
        if t.config & LEVEL:
            self.s.status |= 1 << number
            if t.config & INT_ENABLE:
                self._output(number, 1, now)
        elif t.config & INT_ENABLE:
            self._output(number, 0, now)
            self._output(number, 1, now)
        self._arm(number, now)

    # --- registers ---

    def read(self, offset: int, size: int, now: int) -> int:
        """Any aligned part of a register; reserved ones read as 0."""
        return self._register(offset & ~7, now) >> 8 * (offset & 7)

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        """A whole register or half of one; smaller writes are not allowed (2.3.1) and do nothing."""
        if size < 4 or offset & (size - 1):
            return
        if size == 8:
            field_, value_ = _ALL, value
        else:
            field_, value_ = _LOW << 8 * (offset & 4), value << 8 * (offset & 4)
        register = offset & ~7
        s = self.s
        self._advance(now)
        if register == GENERAL_CONFIG:
            self._write_config(_merge(s.config, value_, field_) & (ENABLE | LEGACY), now)
        elif register == GENERAL_STATUS:
            self._clear_status(value_ & field_ & s.status, now)
        elif register == MAIN_COUNTER:
            # Writing a running counter is undefined; here it goes on from the new value.
            s.counter = _merge(self._counter(now), value_, field_)
            s.counter_at = now
            for t in s.timers:
                t.seen = s.counter
            self._arm_all(now)
        elif register >= FIRST_TIMER:
            number, which = divmod(register - FIRST_TIMER, 0x20)
            if number < TIMERS and which == 0:
                self._write_timer_config(number, _merge(s.timers[number].config, value_, field_), now)
            elif number < TIMERS and which == 8:
                self._write_comparator(number, value_, field_, now)

    def _register(self, register: int, now: int) -> int:
        s = self.s
        if register == MAIN_COUNTER:
            return self._counter(now)
        if register == GENERAL_CAPS:
            return CAPABILITIES
        if register == GENERAL_CONFIG:
            return s.config
        if register == GENERAL_STATUS:
            return s.status
        if register >= FIRST_TIMER:
            number, which = divmod(register - FIRST_TIMER, 0x20)
            if number < TIMERS and which == 0:
                return s.timers[number].config | _TIMER_CAPS
            if number < TIMERS and which == 8:
                self._advance(now)
                return s.timers[number].comparator
        return 0

    def _write_config(self, value: int, now: int) -> None:
        s = self.s
        was = s.config
        if (was ^ value) & ENABLE:
            s.counter, s.counter_at = self._counter(now), now
        s.config = value
        if (was ^ value) & LEGACY:
            for number in (0, 1):  # let go of the line of the old routing, take the new one
                level, s.timers[number].output = s.timers[number].output, 0
                self._drive(number, was, 0, now)
                s.timers[number].output = level
            self.replace(1 if value & LEGACY else 0, now)
            for number in (0, 1):
                self._drive(number, value, s.timers[number].output, now)
        if (was ^ value) & ENABLE:
            for number in range(TIMERS):
                if not value & ENABLE or s.status >> number & 1:
                    self._show_level(number, now)
            self._arm_all(now)

    def _clear_status(self, bits: int, now: int) -> None:
        self.s.status &= ~bits
        for number in range(TIMERS):
            if bits >> number & 1:
                self._show_level(number, now)

    def _write_timer_config(self, number: int, value: int, now: int) -> None:
        s = self.s
        t = s.timers[number]
        value &= _TIMER_WRITABLE
        if not ROUTES >> (value >> 9 & 31) & 1:
            value = value & ~0x3E00 | t.config & 0x3E00  # a pin that is not offered does not stick (2.3.8)
        if value != t.config:
            self._output(number, 0, now)
        if value & MODE_32 and not t.config & MODE_32:
            t.comparator &= _LOW
            t.period &= _LOW
        t.config = value
        if not value & LEVEL:
            s.status &= ~(1 << number)
        self._show_level(number, now)
        self._arm(number, now)

    def _write_comparator(self, number: int, value: int, field_: int, now: int) -> None:
        t = self.s.timers[number]
        if t.config & MODE_32:
            field_ &= _LOW
        if not field_:
            return
        if not t.config & PERIODIC or t.config & VAL_SET:
            t.comparator = _merge(t.comparator, value, field_)
        if t.config & PERIODIC:
            t.period = _merge(t.period, value, field_)
            t.config &= ~VAL_SET
        if not t.config & LEVEL:
            self._output(number, 0, now)
        self._arm(number, now)

    # --- time ---

    def _counter(self, now: int) -> int:
        s = self.s
        if not s.config & ENABLE:
            return s.counter
        return s.counter + (now - s.counter_at) // TICKS_PER_COUNT & _ALL

    def _advance(self, now: int) -> None:
        """Move the comparators of periodic timers past the matches that have happened."""
        counter = self._counter(now)
        for t in self.s.timers:
            passed = counter - t.seen & _ALL
            if passed and t.config & PERIODIC and t.period:
                width = self._width(t)
                first = t.comparator - t.seen & width or width + 1
                if passed >= first:
                    matches = 1 + (passed - first) // t.period
                    t.comparator = t.comparator + matches * t.period & width
            t.seen = counter

    @staticmethod
    def _width(t: Timer) -> int:
        return _LOW if t.config & MODE_32 else _ALL

    def _arm_all(self, now: int) -> None:
        for number in range(TIMERS):
            self._arm(number, now)

    def _arm(self, number: int, now: int) -> None:
        """Schedule the next match, if it would change anything."""
        s = self.s
        t = s.timers[number]
        # A level-triggered timer shows its matches in the status register even without interrupts.
        if s.config & ENABLE and t.config & (INT_ENABLE | LEVEL):
            width = self._width(t)
            distance = t.comparator - self._counter(now) & width or width + 1
            # Counts happen at whole multiples of the period after `counter_at`.
            counts = (now - s.counter_at) // TICKS_PER_COUNT + distance
            when = s.counter_at + counts * TICKS_PER_COUNT
            if when < _TOO_LATE:
                self.at(when, f"timer{number}")
                return
        self.cancel(f"timer{number}")

    # --- outputs ---

    def _show_level(self, number: int, now: int) -> None:
        """A level-triggered output follows its status bit."""
        s = self.s
        t = s.timers[number]
        if t.config & LEVEL:
            on = s.status >> number & 1 and t.config & INT_ENABLE and s.config & ENABLE
            self._output(number, 1 if on else 0, now)
        elif not s.config & ENABLE:
            self._output(number, 0, now)

    def _output(self, number: int, level: int, now: int) -> None:
        t = self.s.timers[number]
        if level != t.output:
            t.output = level
            self._drive(number, self.s.config, level, now)

    def _drive(self, number: int, config: int, level: int, now: int) -> None:
        if config & LEGACY and number < 2:
            self.legacy(number, level, now)
        else:
            pin = self.s.timers[number].config >> 9 & 31
            if ROUTES >> pin & 1:  # pin 0, the value at power-on, is not wired
                self.route(number, pin, level, now)


def _merge(old: int, new: int, field_: int) -> int:
    return old & ~field_ | new & field_
