"""MC146818 real-time clock and CMOS RAM (Motorola MC146818 data sheet; ICH9 data sheet 13.6, upper bank).

Knows ports 0x70 to 0x73, virtual time, and its interrupt line. It may not know the host's clock: the date
is a configured epoch plus virtual time.

Nothing ticks. The seconds follow from when they were last set; the flags of register C follow from which
boundaries lie between the last look (`seen`) and now. Events exist only while an interrupt is enabled.

The update cycle: UIP rises 244 + 1984 µs before the second ends, the registers change and UF sets when it
falls, so that whoever reads UIP as 0 has at least 244 µs of steady registers, as the data sheet promises.

Left out: daylight saving (DSE is stored; as in ICH9 nothing happens) and the square-wave output, which no
PC wires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emu.clock import Clock
from emu.devices.device import Device, Line, Region

SECOND = 1_000_000_000
UIP_NS = (244 + 1984) * 1000

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR = range(10)
REG_A, REG_B, REG_C, REG_D = 0x0A, 0x0B, 0x0C, 0x0D
CENTURY = 0x32
_TIME = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

B_SET, B_PIE, B_AIE, B_UIE, B_SQWE, B_BINARY, B_24H, B_DSE = 0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
D_VALID = 0x80

DEFAULT_EPOCH = 1_795_000_000
"""Seconds since 1970 at tick 0, unless the machine description says otherwise: 2026-11-18 12:26:40 UTC."""

_DAY_SECONDS = 86_400
_CRYSTAL_HZ = 32_768


@dataclass
class RtcState:
    """Registers, and where the clock stood when it was last set."""

    ram: bytes  # 128 bytes; the time cells hold what was written while SET is 1
    extended: bytes  # the upper bank, ports 0x72 and 0x73
    index: int = 0
    extended_index: int = 0
    nmi_masked: bool = False
    a: int = 0x26
    b: int = B_24H
    flags: int = 0  # PF, AF, UF up to tick `seen`
    seen: int = 0
    base_tick: int = 0  # a tick at which a second began
    base_second: int = 0  # which second that was, since 1970
    weekday_shift: int = 0  # the weekday is a counter of its own: how far it is from the calendar's
    line: int = 0


class Rtc(Device):
    """The clock and its RAM; ``line`` is IRQ."""

    s: RtcState

    def __init__(
        self,
        clock: Clock,
        line: Line,
        epoch: int = DEFAULT_EPOCH,
        low_memory: int = 0,
        high_memory: int = 0,
        name: str = "rtc",
    ) -> None:
        """``low_memory``, ``high_memory``: bytes of RAM below and above 4 GiB, for the memory-size cells."""
        super().__init__(name, clock)
        self.line = line
        self.s = RtcState(_firmware_cells(low_memory, high_memory), bytes(128), base_second=epoch)

    def regions(self) -> Sequence[Region]:
        """0x70 to 0x73."""
        return (Region("io", 0x70, 4, self.read, self.write, width=1),)

    def reset(self, now: int) -> None:
        """The RESET pin clears interrupt enables and flags; the battery keeps everything else."""
        s = self.s
        self._catch_up(now)
        s.b &= ~(B_PIE | B_AIE | B_UIE | B_SQWE)
        s.flags = 0
        s.nmi_masked = False
        self._update(now)

    def event(self, event: str, now: int) -> None:
        """A boundary with an enabled interrupt."""
        self._catch_up(now)
        self._update(now)

    # --- ports ---

    def read(self, offset: int, size: int, now: int) -> int:
        """Read the data port of either bank; the index ports are write-only."""
        if offset == 1:
            return self._read_cell(self.s.index, now)
        if offset == 3:
            return self.s.extended[self.s.extended_index]
        return 0xFF

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        """Write an index or a cell."""
        s = self.s
        if offset == 0:
            s.index = value & 0x7F
            s.nmi_masked = bool(value & 0x80)
        elif offset == 1:
            self._write_cell(s.index, value, now)
        elif offset == 2:
            s.extended_index = value & 0x7F
        else:
            s.extended = _with(s.extended, s.extended_index, value)

    def _read_cell(self, index: int, now: int) -> int:
        s = self.s
        if index in _TIME:
            return s.ram[index] if self._stopped() else self._time_cells(now)[index]
        if index == REG_A:
            return s.a | (0x80 if self._update_in_progress(now) else 0)
        if index == REG_B:
            return s.b
        if index == REG_C:
            self._catch_up(now)
            value = self._register_c()
            s.flags = 0
            self._update(now)
            return value
        if index == REG_D:
            return D_VALID
        return s.ram[index]

    def _write_cell(self, index: int, value: int, now: int) -> None:
        s = self.s
        self._catch_up(now)
        if index in _TIME:
            if self._stopped():
                s.ram = _with(s.ram, index, value)
            else:
                # Software that does not stop the clock first: the cell changes, the second goes on.
                self._store_time(now)
                s.ram = _with(s.ram, index, value)
                self._set_time(now)
        elif index == REG_A:
            self._write_a(value & 0x7F, now)
        elif index == REG_B:
            self._write_b(value, now)
        elif index not in (REG_C, REG_D):
            s.ram = _with(s.ram, index, value)
        self._update(now)

    def _write_a(self, value: int, now: int) -> None:
        """Rate select and the divider, which can be held in reset (data sheet, "Divider control")."""
        s = self.s
        was_stopped, was_held = self._stopped(), self._divider_held()
        if not was_stopped and value & 0x60 == 0x60:
            self._store_time(now)
        s.a = value
        if was_held and not self._divider_held():
            s.base_tick = now - SECOND // 2  # the first update comes half a second after the release
            if not s.b & B_SET:
                self._set_time(now)

    def _write_b(self, value: int, now: int) -> None:
        s = self.s
        was_stopped = self._stopped()
        if value & B_SET:
            value &= ~B_UIE  # data sheet, "SET" and "UIE"
            if not was_stopped:
                self._store_time(now)
        s.b = value
        if was_stopped and not self._stopped():
            self._set_time(now)

    # --- the date ---

    def _stopped(self) -> bool:
        """Whether time stands still and the cells are plain RAM."""
        return bool(self.s.b & B_SET) or self._divider_held()

    def _divider_held(self) -> bool:
        return self.s.a & 0x60 == 0x60

    def _second(self, now: int) -> int:
        return self.s.base_second + (now - self.s.base_tick) // SECOND

    def _update_in_progress(self, now: int) -> bool:
        return not self._stopped() and SECOND - (now - self.s.base_tick) % SECOND <= UIP_NS

    def _time_cells(self, now: int) -> dict[int, int]:
        """The time as the cells show it, in the modes of register B."""
        second = self._second(now)
        days, rest = divmod(second, _DAY_SECONDS)
        year, month, day = _civil_from_days(days)
        weekday = (days + 4 + self.s.weekday_shift) % 7 + 1  # 1970-01-01 was a Thursday; Sunday is 1
        return {
            SECONDS: self._encode(rest % 60),
            MINUTES: self._encode(rest // 60 % 60),
            HOURS: self._encode_hour(rest // 3600),
            WEEKDAY: self._encode(weekday),
            DAY: self._encode(day),
            MONTH: self._encode(month),
            YEAR: self._encode(year % 100),
            CENTURY: self._encode(year // 100 % 100),
        }

    def _store_time(self, now: int) -> None:
        ram = bytearray(self.s.ram)
        for index, value in self._time_cells(now).items():
            ram[index] = value
        self.s.ram = bytes(ram)

    def _set_time(self, now: int) -> None:
        """Go on from what the cells say. The divider is not touched: the second ends when it would have.

        Values that are no date are carried over (32 January is 1 February); the data sheet leaves them
        undefined.
        """
        s = self.s
        cell = s.ram
        year = self._decode(cell[CENTURY]) * 100 + self._decode(cell[YEAR])
        month = self._decode(cell[MONTH]) - 1
        days = _days_from_civil(year + month // 12, month % 12 + 1, 1) + self._decode(cell[DAY]) - 1
        clock = self._decode_hour(cell[HOURS]) * 3600 + self._decode(cell[MINUTES]) * 60
        second = days * _DAY_SECONDS + clock + self._decode(cell[SECONDS])
        s.base_second = second - (now - s.base_tick) // SECOND
        s.weekday_shift = (self._decode(cell[WEEKDAY]) - 1 - (second // _DAY_SECONDS + 4)) % 7

    def _encode(self, value: int) -> int:
        return value if self.s.b & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self.s.b & B_BINARY else (value >> 4) * 10 + (value & 15)

    def _encode_hour(self, hour: int) -> int:
        if self.s.b & B_24H:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self.s.b & B_24H:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    # --- interrupts ---

    def _period_pulses(self) -> int:
        """Periodic rate in pulses of 32.768 kHz, or 0 for none (data sheet table 5, time base 32.768 kHz)."""
        rate = self.s.a & 15
        if not rate or self._divider_held():
            return 0
        return 1 << (rate + 6 if rate < 3 else rate - 1)

    def _catch_up(self, now: int) -> None:
        """Set the flags of what happened in (seen, now]."""
        s = self.s
        since, s.seen = s.seen, now
        pulses = self._period_pulses()
        if pulses and self._pulses(now) // pulses != self._pulses(since) // pulses:
            s.flags |= C_PF
        if not self._stopped():
            first, last = self._second(since), self._second(now)
            if last > first:
                s.flags |= C_UF
                alarm = self._next_alarm(first)
                if alarm is not None and alarm <= last:
                    s.flags |= C_AF

    def _pulses(self, now: int) -> int:
        return (now - self.s.base_tick) * _CRYSTAL_HZ // SECOND

    def _next_alarm(self, after: int) -> int | None:
        """First second later than ``after`` that matches the alarm cells; 0xC0 and above match anything."""
        cells = self.s.ram
        hour, minute, second = cells[HOURS_ALARM], cells[MINUTES_ALARM], cells[SECONDS_ALARM]
        want_hour = -1 if hour >= 0xC0 else self._decode_hour(hour)
        want_minute = -1 if minute >= 0xC0 else self._decode(minute)
        want_second = -1 if second >= 0xC0 else self._decode(second)
        if want_hour > 23 or want_minute > 59 or want_second > 59:
            return None
        at = after + 1
        while at <= after + _DAY_SECONDS:
            rest = at % _DAY_SECONDS
            if want_hour >= 0 and rest // 3600 != want_hour:
                at += 3600 - rest % 3600
            elif want_minute >= 0 and rest // 60 % 60 != want_minute:
                at += 60 - rest % 60
            elif want_second >= 0 and rest % 60 != want_second:
                at += (want_second - rest) % 60
            else:
                return at
        return None

    def _register_c(self) -> int:
        s = self.s
        return s.flags | (C_IRQF if s.flags & s.b & (B_PIE | B_AIE | B_UIE) else 0)

    def _update(self, now: int) -> None:
        """Drive the line, and wake up for the next boundary whose interrupt is enabled."""
        s = self.s
        level = 1 if self._register_c() & C_IRQF else 0
        if level != s.line:
            s.line = level
            self.line(level, now)
        wake = None
        if not level:  # while the line is up, nothing can change it but a read of register C
            candidates = []
            pulses = self._period_pulses()
            if s.b & B_PIE and pulses:
                following = (self._pulses(now) // pulses + 1) * pulses
                candidates.append(s.base_tick - (-following * SECOND // _CRYSTAL_HZ))
            if not self._stopped():
                alarm = self._next_alarm(self._second(now)) if s.b & B_AIE else None
                second = self._second(now) + 1 if s.b & B_UIE else alarm
                if second is not None:
                    candidates.append(s.base_tick + (second - s.base_second) * SECOND)
            wake = min(candidates, default=None)
        if wake is None:
            self.cancel("boundary")
        else:
            self.at(wake, "boundary")


def _with(cells: bytes, index: int, value: int) -> bytes:
    return cells[:index] + bytes((value,)) + cells[index + 1 :]


def _firmware_cells(low_memory: int, high_memory: int) -> bytes:
    """CMOS as a PC BIOS leaves it: memory sizes, equipment, checksum (IBM PC/AT technical reference)."""
    cells = bytearray(128)
    cells[0x14] = 0x02  # equipment: a numeric coprocessor; no display, no floppy drive
    cells[0x15:0x17] = (640).to_bytes(2, "little")  # KiB of base memory
    extended = min(max(low_memory - (1 << 20), 0) >> 10, 0xFFFF)
    cells[0x17:0x19] = cells[0x30:0x32] = extended.to_bytes(2, "little")  # KiB above 1 MiB
    above_16m = min(max(low_memory - (16 << 20), 0) >> 16, 0xFFFF)
    cells[0x34:0x36] = above_16m.to_bytes(2, "little")  # 64 KiB blocks above 16 MiB
    cells[0x5B:0x5E] = min(high_memory >> 16, 0xFF_FFFF).to_bytes(3, "little")  # and above 4 GiB
    cells[0x2E:0x30] = sum(cells[0x10:0x2E]).to_bytes(2, "big")
    return bytes(cells)


def _days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of a date of the Gregorian calendar, counting years from March."""
    if month <= 2:
        year -= 1
    month_from_march = (month + 9) % 12
    leap_days = year // 4 - year // 100 + year // 400
    return year * 365 + leap_days + (153 * month_from_march + 2) // 5 + day - 1 - 719_468


def _civil_from_days(days: int) -> tuple[int, int, int]:
    """Year, month and day of a day since 1970-01-01."""
    days += 719_468  # since 0000-03-01
    year = (days * 400 + 200) // 146_097
    while _march_first(year) > days:
        year -= 1
    while _march_first(year + 1) <= days:
        year += 1
    of_year = days - _march_first(year)
    month_from_march = (5 * of_year + 2) // 153
    day = of_year - (153 * month_from_march + 2) // 5 + 1
    month = (month_from_march + 2) % 12 + 1
    return year + (1 if month <= 2 else 0), month, day


def _march_first(year: int) -> int:
    return year * 365 + year // 4 - year // 100 + year // 400
