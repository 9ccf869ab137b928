"""ACPI power management of ICH9 and the PC's ways to reset (ACPI 6.5, 4.8; ICH9 data sheet 13.7, 13.8).

Knows PM1a, the PM timer, GPE0 and SMI registers at PMBASE, the reset control register 0xCF9, port 0x92, and
the command port of a keyboard controller without a keyboard. It may not know how a machine is switched off:
``power`` is told "off" or "reset".

The machine is always in ACPI mode (FADT has no SMI command), so SCI_EN reads 1. The PM timer is 32 bits
wide at 315/88 MHz, three times the 8254's clock; its TMR_STS follows from time and only has an event while
it can interrupt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emu.clock import Clock
from emu.devices.device import Device, Line, Region

PM_BASE = 0x600
SCI_IRQ = 9
PM1_STS, PM1_EN, PM1_CNT, PM_TMR, GPE0_STS, GPE0_EN, SMI_EN, SMI_STS = (
    0x00, 0x02, 0x04, 0x08, 0x20, 0x28, 0x30, 0x34,
)  # fmt: skip
TMR_STS, GBL_STS, PWRBTN_STS, SLPBTN_STS, RTC_STS, WAK_STS = 1, 1 << 5, 1 << 8, 1 << 9, 1 << 10, 1 << 15
_EN_WRITABLE = TMR_STS | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS
_STS_CLEARABLE = _EN_WRITABLE | 1 << 4 | WAK_STS
SCI_EN, SLP_EN = 1, 1 << 13
SLP_TYP_S5 = 7

TIMER_NUMERATOR, TIMER_DENOMINATOR = 315, 88_000
"""PM timer counts per tick: 3.579545 MHz, exactly 315/88 MHz."""
_HALF_RANGE = 1 << 31  # TMR_STS sets when the highest bit changes

Power = Callable[[str, int], None]


def pm_timer_at(now: int) -> int:
    """The PM timer's count at tick ``now``, not yet cut to 32 bits."""
    return now * TIMER_NUMERATOR // TIMER_DENOMINATOR


@dataclass
class AcpiPmState:
    """Registers. TMR_STS is not in ``status``: see `tmr_cleared`."""

    status: int = 0
    enable: int = 0
    control: int = SCI_EN
    tmr_cleared: int = 0
    """How many times the timer's top bit had changed when TMR_STS was last cleared."""
    gpe_status: int = 0
    gpe_enable: int = 0
    smi_enable: int = 0
    smi_status: int = 0
    line: int = 0


class AcpiPm(Device):
    """The block at ``base``; ``line`` is SCI, level-triggered."""

    s: AcpiPmState

    def __init__(
        self, clock: Clock, line: Line, power: Power, base: int = PM_BASE, name: str = "acpipm"
    ) -> None:
        super().__init__(name, clock)
        self.line = line
        self.power = power
        self.base = base
        self.s = AcpiPmState()

    def regions(self) -> Sequence[Region]:
        """128 ports, decoded by 32-bit word so that drivers may take registers whole or in halves."""
        return (
            Region("io", self.base + PM_TMR, 4, self._read_timer, self._write_nothing, width=4),
            Region("io", self.base, 8, self.read, self.write, width=1),
            Region("io", self.base + GPE0_STS, 0x18, self._read_high, self._write_high, width=1),
        )

    def reset(self, now: int) -> None:
        """Power-on."""
        self.s = AcpiPmState(line=self.s.line, tmr_cleared=self._tmr_changes(now))
        self._update(now)

    def event(self, event: str, now: int) -> None:
        """The timer's top bit changes while that can interrupt."""
        self._update(now)

    def press_power_button(self, now: int) -> None:
        """Somebody presses the power button."""
        self.s.status |= PWRBTN_STS
        self._update(now)

    def set_gpe(self, number: int, now: int) -> None:
        """General-purpose event ``number`` (0 to 63) happens."""
        self.s.gpe_status |= 1 << number
        self._update(now)

    # --- registers ---

    def _read_timer(self, offset: int, size: int, now: int) -> int:
        return (now * TIMER_NUMERATOR // TIMER_DENOMINATOR & 0xFFFF_FFFF) >> 8 * offset

    def _write_nothing(self, offset: int, size: int, value: int, now: int) -> None:
        """The timer is read-only."""

    def read(self, offset: int, size: int, now: int) -> int:
        """One byte of PM1_STS, PM1_EN or PM1_CNT."""
        s = self.s
        status = s.status | (TMR_STS if self._tmr_changes(now) != s.tmr_cleared else 0)
        return (status | s.enable << 16 | s.control << 32) >> 8 * offset & 0xFF

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        """One byte of PM1_STS (write 1 to clear), PM1_EN or PM1_CNT."""
        s = self.s
        shift = 8 * (offset & 1)
        field = 0xFF << shift
        if offset < PM1_EN:
            clear = value << shift & _STS_CLEARABLE
            s.status &= ~clear
            if clear & TMR_STS:
                s.tmr_cleared = self._tmr_changes(now)
        elif offset < PM1_CNT:
            s.enable = (s.enable & ~field | value << shift) & _EN_WRITABLE
        elif offset < PM1_CNT + 2:
            written = s.control & ~field | value << shift
            s.control = written & 0x1C02 | SCI_EN  # SLP_EN and GBL_RLS are write-only
            if written & SLP_EN and written >> 10 & 7 == SLP_TYP_S5:
                self.power("off", now)
        self._update(now)

    def _read_high(self, offset: int, size: int, now: int) -> int:
        s = self.s
        whole = s.gpe_status | s.gpe_enable << 64 | s.smi_enable << 128 | s.smi_status << 160
        return whole >> 8 * offset & 0xFF

    def _write_high(self, offset: int, size: int, value: int, now: int) -> None:
        s = self.s
        shift = 8 * (offset & 7)
        if offset < 8:
            s.gpe_status &= ~(value << shift)
        elif offset < 16:
            s.gpe_enable = s.gpe_enable & ~(0xFF << shift) | value << shift
        elif offset < 20:
            s.smi_enable = s.smi_enable & ~(0xFF << shift) | value << shift
        else:
            s.smi_status &= ~(value << 8 * (offset - 20))
        self._update(now)

    # --- timer and SCI ---

    @staticmethod
    def _tmr_changes(now: int) -> int:
        return pm_timer_at(now) // _HALF_RANGE

    def _update(self, now: int) -> None:
        s = self.s
        timer_set = self._tmr_changes(now) != s.tmr_cleared
        status = s.status | (TMR_STS if timer_set else 0)
        level = 1 if status & s.enable or s.gpe_status & s.gpe_enable else 0
        if s.enable & TMR_STS and not timer_set:
            change = (s.tmr_cleared + 1) * _HALF_RANGE
            self.at(-(-change * TIMER_DENOMINATOR // TIMER_NUMERATOR), "timer")
        else:
            self.cancel("timer")
        if level != s.line:
            s.line = level
            self.line(level, now)


@dataclass
class ResetControlState:
    """What the reset ports remember."""

    cf9: int = 0
    port92: int = 0x02  # A20 is on; nothing here can switch it off for the CPU
    command: int = 0  # keyboard controller command that waits for its data byte
    config: int = 0x34  # controller command byte: both interfaces off, system flag
    output_port: int = 0x03
    data: int = -1  # what port 0x60 gives next
    last_was_command: bool = True


class ResetControl(Device):
    """0xCF9, port 0x92, and the keyboard controller (PC/AT technical reference) with nothing plugged in."""

    s: ResetControlState

    def __init__(self, clock: Clock, power: Power, name: str = "reset") -> None:
        super().__init__(name, clock)
        self.power = power
        self.s = ResetControlState()

    def regions(self) -> Sequence[Region]:
        """All but 0xCF9, which lies inside PCI's address register: `PciHost` passes byte accesses on."""
        return (
            Region("io", 0x60, 1, self._read_data, self._write_data, width=1),
            Region("io", 0x64, 1, self._read_status, self._write_command, width=1),
            Region("io", 0x92, 1, self._read_92, self._write_92, width=1),
        )

    def reset(self, now: int) -> None:
        """Power-on."""
        self.s = ResetControlState()

    def read_cf9(self, now: int) -> int:
        """Reset control register."""
        return self.s.cf9

    def write_cf9(self, value: int, now: int) -> None:
        """RST_CPU (bit 2) going from 0 to 1 resets; SYS_RST (bit 1) and FULL_RST (bit 3) say how hard."""
        self.s.cf9 = value & 0x0A  # the reset itself clears RST_CPU, so that bit never stays
        if value & 4:
            self.power("reset", now)

    def _read_92(self, offset: int, size: int, now: int) -> int:
        return self.s.port92

    def _write_92(self, offset: int, size: int, value: int, now: int) -> None:
        rising = value & 1 and not self.s.port92 & 1
        self.s.port92 = value & 0x03
        if rising:
            self.power("reset", now)

    def _read_data(self, offset: int, size: int, now: int) -> int:
        value, self.s.data = self.s.data, -1
        return max(value, 0)

    def _read_status(self, offset: int, size: int, now: int) -> int:
        # not inhibited; last write was a command; system flag; output buffer full
        s = self.s
        return 0x10 | (0x08 if s.last_was_command else 0) | s.config & 0x04 | (1 if s.data >= 0 else 0)

    def _write_command(self, offset: int, size: int, value: int, now: int) -> None:
        s = self.s
        s.command = 0
        s.last_was_command = True
        if value == 0x20:
            s.data = s.config
        elif value in (0x60, 0xD1, 0xD2, 0xD3, 0xD4):
            s.command = value
        elif value in (0xA7, 0xA8, 0xAD, 0xAE):
            bit = 0x20 if value < 0xAA else 0x10
            s.config = s.config & ~bit if value in (0xA8, 0xAE) else s.config | bit
        elif value == 0xAA:
            s.data = 0x55
        elif value in (0xA9, 0xAB):
            s.data = 0x01  # interface test: the clock line is stuck low, nobody is there
        elif value == 0xD0:
            s.data = s.output_port
        elif value >= 0xF0 and not value & 1:
            self.power("reset", now)  # pulse output bit 0, which is the CPU's reset

    def _write_data(self, offset: int, size: int, value: int, now: int) -> None:
        s = self.s
        command, s.command = s.command, 0
        s.last_was_command = False
        if command == 0x60:
            s.config = value & 0x77
        elif command == 0xD1:
            s.output_port = value | 0x02
            if not value & 1:
                self.power("reset", now)
        elif command in (0xD2, 0xD3):
            s.data = value
