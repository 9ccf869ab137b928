"""Local APIC: xAPIC, x2APIC and TSC-deadline timer (Intel SDM volume 3, chapter "APIC"), and the APIC bus.

Knows its registers, virtual time, the INTR pin of its CPU, and the other APICs through `ApicBus`. It may
not know what a CPU does with NMI, INIT or SIPI (``signal``), and decodes no fixed address: each CPU sees
its own APIC at the address in IA32_APIC_BASE, so the platform routes that page.

``intr(level, now)`` is kept equal to "an interrupt can be taken now": a request in IRR above the processor
priority, or an external interrupt of the 8259 through LINT0 (or, with the APIC off, directly).

The timer counts at 1 GHz, one tick per nanosecond before the divider. It is never stepped; its event exists
only while its interrupt is unmasked, so a forgotten timer does not keep an idle machine alive.

Choices where the manual leaves one: lowest-priority delivery goes to the matching APIC of lowest processor
priority, then of lowest index; a fixed interrupt is taken before an external one; SMI is ignored (there is
no SMM); EOI broadcast suppression and CMCI are not offered (version 0x14, six LVT entries).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from emu.clock import Clock
from emu.devices.device import Device, Line, Region

MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC = 0x1B, 0x6E0, 0x800
BASE_BSP, BASE_X2APIC, BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11
DEFAULT_BASE = 0xFEE0_0000
_BASE_ADDRESS = 0xF_FFFF_FFFF_F000  # MAXPHYADDR may be less; writing more is the guest's own mistake
_BASE_RESERVED = 0x2FF | ~((1 << 52) - 1)

ID, VERSION = 0x20, 0x30
TPR, APR, PPR, EOI, RRD, LDR, DFR, SVR = range(0x80, 0x100, 0x10)
ISR, TMR, IRR, ESR, LVT_CMCI, ICR, ICR2 = 0x100, 0x180, 0x200, 0x280, 0x2F0, 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x320, 0x380, 0x10)
INITIAL_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0
VERSION_VALUE = 0x0005_0014

FIXED, LOWEST, SMI, _RESERVED_MODE, NMI, INIT, STARTUP, EXTINT = range(8)
MASKED, LEVEL, REMOTE_IRR = 1 << 16, 1 << 15, 1 << 14
ONE_SHOT, PERIODIC, TSC_DEADLINE = 0, 1, 2
SVR_ENABLE = 1 << 8
ESR_SEND_ILLEGAL, ESR_RECEIVE_ILLEGAL, ESR_ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7

BROADCAST = 0xFFFF_FFFF
_LVT_WRITABLE = {
    LVT_TIMER: 0x7_00FF,
    LVT_THERMAL: 0x1_07FF,
    LVT_PERF: 0x1_07FF,
    LVT_LINT0: 0x1_A7FF,
    LVT_LINT1: 0x1_A7FF,
    LVT_ERROR: 0x1_00FF,
}
_TOO_LATE = 1 << 63  # a deadline nobody lives to see: not worth an event


class ApicBus:
    """What carries interrupt messages between local APICs, I/O APICs and devices that signal by message."""

    def __init__(self) -> None:
        self.lapics: list[LocalApic] = []
        self.eoi_listeners: list[Callable[[int, int], None]] = []

    def deliver(
        self,
        mode: int,
        vector: int,
        destination: int,
        logical: bool,
        level: bool,
        now: int,
        among: Iterable[LocalApic] | None = None,
    ) -> bool:
        """Carry one interrupt message; returns whether some APIC took it.

        ``destination`` is 32 bits wide; `widen` makes one from the 8 bits of an I/O APIC, MSI or xAPIC
        message. ``among``: a destination shorthand has already chosen the targets.
        """
        if among is None:
            targets = [a for a in self.lapics if a.matches(destination, logical)]
        else:
            targets = list(among)
        if mode == LOWEST:
            able = [a for a in targets if a.software_enabled]
            if not able:
                return False
            targets = [min(able, key=lambda a: (a.processor_priority() >> 4, a.index))]
        taken = False
        for apic in targets:
            taken = apic.accept(mode, vector, level, now) or taken
        return taken

    @staticmethod
    def widen(destination: int, logical: bool) -> int:
        """An 8-bit destination: physical 0xFF means everybody, as 0xFFFFFFFF does in x2APIC."""
        return BROADCAST if destination == 0xFF and not logical else destination

    def message(self, address: int, data: int, now: int) -> bool:
        """A message-signalled interrupt: a 4-byte write to 0xFEExxxxx (SDM 12.11)."""
        logical = bool(address & 4)
        destination = self.widen(address >> 12 & 0xFF, logical)
        level = bool(data & 0x8000)
        if level and not data & 0x4000:
            return False  # de-assertion of a level: EOI does that work
        return self.deliver(data >> 8 & 7, data & 0xFF, destination, logical, level, now)

    def broadcast_eoi(self, vector: int, now: int) -> None:
        """A level-triggered interrupt was completed: tell the I/O APICs."""
        for listener in self.eoi_listeners:
            listener(vector, now)

    def regions(self) -> Sequence[Region]:
        """The interrupt message window. Reads there find nobody."""
        return (Region("mmio", DEFAULT_BASE, 1 << 20, self._read_window, self._write_window, width=4),)

    @staticmethod
    def _read_window(offset: int, size: int, now: int) -> int:
        return (1 << 8 * size) - 1

    def _write_window(self, offset: int, size: int, value: int, now: int) -> None:
        if size == 4 and offset & 3 == 0:
            self.message(DEFAULT_BASE + offset, value, now)


@dataclass
class LapicState:
    """Registers by the names of the SDM."""

    apic_base: int
    irr: int = 0  # 256 bits each
    isr: int = 0
    tmr: int = 0
    tpr: int = 0
    ldr: int = 0
    dfr: int = 0xFFFF_FFFF
    svr: int = 0xFF
    esr: int = 0
    errors: int = 0  # detected since ESR was last written
    icr: int = 0
    icr2: int = 0
    lvt: list[int] = field(default_factory=lambda: [MASKED] * 6)
    divide: int = 0
    initial: int = 0
    count: int = 0  # timer count at tick `count_at`; 0: not counting
    count_at: int = 0
    deadline: int = 0  # IA32_TSC_DEADLINE
    lint: list[int] = field(default_factory=lambda: [0, 0])
    extint_message: bool = False  # an ExtINT message of an I/O APIC waits for INTA
    intr: int = 0


class LocalApic(Device):
    """The local APIC of CPU ``index``, which is also its initial APIC ID."""

    s: LapicState

    def __init__(
        self,
        clock: Clock,
        index: int,
        bus: ApicBus,
        intr: Line,
        signal: Callable[[str, int, int], None],
        tsc_offset: Callable[[], int] = lambda: 0,
        extint_acknowledge: Callable[[int], int] = lambda now: -1,
        name: str | None = None,
    ) -> None:
        """``signal(kind, vector, now)``: "nmi", "init" or "sipi" for the CPU. TSC is now + tsc_offset()."""
        super().__init__(name or f"lapic{index}", clock)
        self.index = index
        self.bus = bus
        self.intr = intr
        self.signal = signal
        self.tsc_offset = tsc_offset
        self.extint_acknowledge = extint_acknowledge
        self.s = self._power_on()
        bus.lapics.append(self)

    def _power_on(self) -> LapicState:
        return LapicState(DEFAULT_BASE | BASE_ENABLE | (BASE_BSP if self.index == 0 else 0))

    # --- reset ---

    def reset(self, now: int) -> None:
        """Power-on."""
        self._restart(self._power_on(), now)

    def init_reset(self, now: int) -> None:
        """INIT: like power-on, but the mode in IA32_APIC_BASE, and so the x2APIC ID, stay (SDM 12.4.7.3)."""
        fresh = self._power_on()
        fresh.apic_base = self.s.apic_base
        if fresh.apic_base & BASE_X2APIC:
            fresh.ldr = self._x2apic_ldr()
        self._restart(fresh, now)

    def virtual_wire(self, now: int) -> None:
        """What firmware leaves on the boot CPU: 8259 on LINT0, NMI on LINT1 (MP specification 1.4)."""
        self.s.svr = 0x1FF
        self.s.lvt[_slot(LVT_LINT0)] = EXTINT << 8
        self.s.lvt[_slot(LVT_LINT1)] = NMI << 8
        self._update(now)

    def _restart(self, fresh: LapicState, now: int) -> None:
        self.cancel("timer")
        fresh.lint = self.s.lint  # pins
        fresh.intr = self.s.intr
        self.s = fresh
        self._update(now)

    # --- what the CPU sees ---

    @property
    def mmio_base(self) -> int:
        """Physical address of the register page, or -1 when it is not there (off, or x2APIC)."""
        base = self.s.apic_base
        return base & _BASE_ADDRESS if base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE else -1

    @property
    def software_enabled(self) -> bool:
        """APIC on in IA32_APIC_BASE and in the spurious-interrupt vector register."""
        return bool(self.s.apic_base & BASE_ENABLE and self.s.svr & SVR_ENABLE)

    @property
    def x2apic(self) -> bool:
        """In x2APIC mode."""
        return bool(self.s.apic_base & BASE_X2APIC)

    def acknowledge(self, now: int) -> int:
        """The CPU takes an interrupt: its vector, or -1 when none can be taken."""
        s = self.s
        vector = self._deliverable()
        if vector >= 0:
            s.irr &= ~(1 << vector)
            s.isr |= 1 << vector
        elif self._extint_pending():
            s.extint_message = False
            vector = self.extint_acknowledge(now)
        self._update(now)
        return vector

    def get_cr8(self) -> int:
        """CR8 is bits 7:4 of TPR."""
        return self.s.tpr >> 4

    def set_cr8(self, value: int, now: int) -> None:
        """MOV to CR8."""
        self.s.tpr = (value & 15) << 4
        self._update(now)

    def processor_priority(self) -> int:
        """PPR (SDM 12.8.3.1)."""
        tpr = self.s.tpr
        in_service = max(self.s.isr.bit_length() - 1, 0) & 0xF0
        return tpr if tpr & 0xF0 >= in_service else in_service

    # --- MSRs ---

    @staticmethod
    def owns_msr(msr: int) -> bool:
        """Whether an MSR is the APIC's."""
        return MSR_X2APIC <= msr <= 0x8FF or msr in (MSR_APIC_BASE, MSR_TSC_DEADLINE)

    def read_msr(self, msr: int, now: int) -> int | None:
        """RDMSR; None means #GP."""
        s = self.s
        if msr == MSR_APIC_BASE:
            return s.apic_base
        if msr == MSR_TSC_DEADLINE:
            return s.deadline
        register = (msr - MSR_X2APIC) << 4
        if not self.x2apic or not 0 <= register < 0x1000:
            return None
        if register == ICR:
            return s.icr2 << 32 | s.icr
        if register in (EOI, SELF_IPI, ICR2, DFR, APR, RRD) or not _exists(register):
            return None
        return self._read_register(register, now)

    def write_msr(self, msr: int, value: int, now: int) -> bool:
        """WRMSR; False means #GP and no effect."""
        s = self.s
        if msr == MSR_APIC_BASE:
            return self._write_base(value, now)
        if msr == MSR_TSC_DEADLINE:
            if self._timer_mode() == TSC_DEADLINE:
                s.deadline = value
                self._arm(now)
            return True
        register = (msr - MSR_X2APIC) << 4
        if not self.x2apic or not 0 <= register < 0x1000:
            return False
        if register == ICR:
            if value & 0xFFFF_FFFF & ~0xC_DFFF:
                return False
            s.icr2, s.icr = value >> 32, value & 0xC_CFFF
            self._send_ipi(s.icr, s.icr2, now)
            return True
        if register == SELF_IPI:
            if value > 0xFF:
                return False
            self._send_ipi(1 << 18 | value, 0, now)
            return True
        writable = _X2APIC_WRITABLE.get(register)
        if writable is None or value & ~writable:
            return False
        self._write_register(register, value, now)
        return True

    def tsc_changed(self, now: int) -> None:
        """The TSC was written: an armed deadline is now another tick away."""
        self._arm(now)

    def _write_base(self, value: int, now: int) -> bool:
        """IA32_APIC_BASE and the legal transitions between off, xAPIC and x2APIC (SDM 12.12.5)."""
        s = self.s
        if value & _BASE_RESERVED:
            return False
        old, new = s.apic_base & (BASE_ENABLE | BASE_X2APIC), value & (BASE_ENABLE | BASE_X2APIC)
        if new == BASE_X2APIC:
            return False
        if old != new:
            from_x2apic_to_xapic = old & BASE_X2APIC and new == BASE_ENABLE
            from_off_to_x2apic = not old and new & BASE_X2APIC
            if from_x2apic_to_xapic or from_off_to_x2apic:
                return False
        s.apic_base = value
        if not new and old:
            fresh = self._power_on()
            fresh.apic_base = value
            self._restart(fresh, now)  # off and on again starts like after power-on (SDM 12.4.3)
        elif new & BASE_X2APIC and not old & BASE_X2APIC:
            s.ldr = self._x2apic_ldr()
            s.icr2 = 0
        self._update(now)
        return True

    def _x2apic_ldr(self) -> int:
        return self.index >> 4 << 16 | 1 << (self.index & 15)

    # --- the register page ---

    def mmio_read(self, offset: int, size: int, now: int) -> int:
        """A load from the register page. Registers are 32 bits on 16-byte boundaries; the rest reads as 0."""
        register = offset & 0xFF0
        if not _exists(register) or register in (SELF_IPI,):
            self._error(ESR_ILLEGAL_REGISTER, now)
            return 0
        value = self._read_register(register, now)
        at = offset & 15
        return value >> 8 * at & (1 << 8 * size) - 1 if at < 4 else 0

    def mmio_write(self, offset: int, size: int, value: int, now: int) -> None:
        """A store to the register page.

        Anything but a whole aligned register is undefined; here it does nothing, except that a wider store
        writes its low four bytes.
        """
        if offset & 15 or size < 4:
            return
        value &= 0xFFFF_FFFF
        if not _exists(offset) or offset == SELF_IPI:
            self._error(ESR_ILLEGAL_REGISTER, now)
            return
        self._write_register(offset, value, now)

    def _read_register(self, register: int, now: int) -> int:
        s = self.s
        if register == CURRENT_COUNT:
            return self._current_count(now)
        if ISR <= register < ESR:
            bits = (s.isr, s.tmr, s.irr)[register - ISR >> 7]
            return bits >> ((register & 0x70) << 1) & 0xFFFF_FFFF
        if LVT_TIMER <= register <= LVT_ERROR:
            return s.lvt[_slot(register)]
        if register == ID:
            return self.index if self.x2apic else self.index << 24 & 0xFFFF_FFFF
        if register == VERSION:
            return VERSION_VALUE
        if register == TPR:
            return s.tpr
        if register == PPR:
            return self.processor_priority()
        if register == APR:
            return self._arbitration_priority()
        if register == LDR:
            return s.ldr
        if register == DFR:
            return s.dfr
        if register == SVR:
            return s.svr
        if register == ESR:
            return s.esr
        if register == ICR:
            return s.icr
        if register == ICR2:
            return s.icr2
        if register == INITIAL_COUNT:
            return s.initial
        if register == DIVIDE:
            return s.divide
        return 0  # EOI and RRD

    def _write_register(self, register: int, value: int, now: int) -> None:
        s = self.s
        if register == EOI:
            self._eoi(now)
        elif register == INITIAL_COUNT:
            if self._timer_mode() != TSC_DEADLINE:
                s.initial = s.count = value
                s.count_at = now
                self._arm(now)
        elif register == ICR:
            s.icr = value & 0xC_CFFF
            self._send_ipi(s.icr, ApicBus.widen(s.icr2 >> 24, bool(value & 0x800)), now)
        elif register == ICR2:
            s.icr2 = value & 0xFF00_0000
        elif register == TPR:
            s.tpr = value & 0xFF
            self._update(now)
        elif LVT_TIMER <= register <= LVT_ERROR:
            self._write_lvt(register, value, now)
        elif register == SVR:
            s.svr = value & 0x1FF
            if not value & SVR_ENABLE:
                s.lvt = [entry | MASKED for entry in s.lvt]
                self._arm(now)
            self._update(now)
        elif register == ESR:
            s.esr, s.errors = s.errors, 0
        elif register == DIVIDE:
            left = self._current_count(now)
            s.divide = value & 0x0B
            s.count, s.count_at = left, now
            self._arm(now)
        elif register == LDR:
            s.ldr = value & 0xFF00_0000
        elif register == DFR:
            s.dfr = value | 0x0FFF_FFFF
        # ID, VERSION, APR, PPR, RRD, ISR, TMR, IRR and CURRENT_COUNT are read-only

    def _write_lvt(self, register: int, value: int, now: int) -> None:
        s = self.s
        slot = _slot(register)
        old = s.lvt[slot]
        value &= _LVT_WRITABLE[register]
        if not s.svr & SVR_ENABLE:
            value |= MASKED  # cannot be cleared while software-disabled (SDM 12.4.7.2)
        if register == LVT_TIMER:
            was, will = self._timer_mode(), value >> 17 & 3
            if was != will:
                if TSC_DEADLINE in (was, will):
                    s.initial = s.count = s.deadline = 0  # such a change disarms (SDM 12.5.4.1)
                else:
                    s.count, s.count_at = self._current_count(now), now
            s.lvt[slot] = value
            self._arm(now)
        elif register in (LVT_LINT0, LVT_LINT1):
            s.lvt[slot] = value | old & REMOTE_IRR if value & LEVEL else value
            self._lint_level(register == LVT_LINT1, now)
            self._update(now)
        else:
            s.lvt[slot] = value

    # --- requests ---

    def accept(self, mode: int, vector: int, level: bool, now: int) -> bool:
        """A message of the bus arrives. Returns whether it is taken."""
        s = self.s
        if not s.apic_base & BASE_ENABLE:
            return False
        if mode in (FIXED, LOWEST):
            if not s.svr & SVR_ENABLE:
                return False
            if vector < 16:
                self._error(ESR_RECEIVE_ILLEGAL, now)
                return False
            self._request(vector, level, now)
        elif mode == NMI:
            self.signal("nmi", 0, now)
        elif mode == INIT:
            self.init_reset(now)
            self.signal("init", 0, now)
        elif mode == STARTUP:
            self.signal("sipi", vector, now)
        elif mode == EXTINT:
            s.extint_message = True
            self._update(now)
        return mode != _RESERVED_MODE

    def matches(self, destination: int, logical: bool) -> bool:
        """Whether a message is addressed to this APIC (SDM 12.6.2 and 12.12.10)."""
        s = self.s
        if not logical:
            return destination in (BROADCAST, self.index if self.x2apic else self.index & 0xFF)
        if self.x2apic:
            if destination == BROADCAST:
                return True
            return destination >> 16 == s.ldr >> 16 and bool(destination & s.ldr & 0xFFFF)
        mda, mine = destination & 0xFF, s.ldr >> 24
        if mda == 0xFF:
            return True
        if s.dfr >> 28 == 0xF:  # flat
            return bool(mda & mine)
        if s.dfr >> 28 == 0:  # cluster
            return mda >> 4 in (15, mine >> 4) and bool(mda & mine & 15)
        return False

    def lint_pin(self, pin: int, level: int, now: int) -> None:
        """LINT0 (the 8259's INTR) or LINT1 (NMI) changes."""
        s = self.s
        rising = level and not s.lint[pin]
        s.lint[pin] = level
        if rising and not s.apic_base & BASE_ENABLE:
            if pin == 1:
                self.signal("nmi", 0, now)  # with the APIC off, the pins are INTR and NMI
        elif rising:
            entry = s.lvt[_slot(LVT_LINT0) + pin]
            mode = entry >> 8 & 7
            if not entry & MASKED:
                if mode == FIXED and not entry & LEVEL:
                    self._local_interrupt(entry, now)
                elif mode == NMI:
                    self.signal("nmi", 0, now)
                elif mode == INIT:
                    self.init_reset(now)
                    self.signal("init", 0, now)
        self._lint_level(bool(pin), now)
        self._update(now)

    def _lint_level(self, pin: bool, now: int) -> None:
        """A level-triggered LINT pin requests again until it falls."""
        s = self.s
        slot = _slot(LVT_LINT0) + pin
        entry = s.lvt[slot]
        if s.lint[pin] and entry & (MASKED | REMOTE_IRR | LEVEL | 0x700) == LEVEL:
            s.lvt[slot] = entry | REMOTE_IRR
            self._request(entry & 0xFF, True, now)

    def _local_interrupt(self, entry: int, now: int) -> None:
        """An LVT entry fires in fixed mode."""
        if entry & 0xF0:
            self._request(entry & 0xFF, False, now)
        else:
            self._error(ESR_RECEIVE_ILLEGAL, now)

    def _request(self, vector: int, level: bool, now: int) -> None:
        s = self.s
        bit = 1 << vector
        s.irr |= bit
        s.tmr = s.tmr | bit if level else s.tmr & ~bit
        self._update(now)

    def _eoi(self, now: int) -> None:
        s = self.s
        vector = s.isr.bit_length() - 1
        if vector < 0:
            return
        bit = 1 << vector
        s.isr &= ~bit
        if s.tmr & bit:
            for pin in (False, True):
                slot = _slot(LVT_LINT0) + pin
                if s.lvt[slot] & REMOTE_IRR and s.lvt[slot] & 0xFF == vector:
                    s.lvt[slot] &= ~REMOTE_IRR
                    self._lint_level(pin, now)
            self.bus.broadcast_eoi(vector, now)
        self._update(now)

    def _error(self, bits: int, now: int) -> None:
        s = self.s
        s.errors |= bits
        entry = s.lvt[_slot(LVT_ERROR)]
        # A bad vector in the error entry itself would otherwise recurse; it is recorded above all the same.
        if not entry & MASKED and entry & 0xF0:
            self._request(entry & 0xFF, False, now)

    def _send_ipi(self, icr: int, destination: int, now: int) -> None:
        """SDM 12.6.1."""
        mode, vector, shorthand = icr >> 8 & 7, icr & 0xFF, icr >> 18 & 3
        level_deassert = mode == INIT and icr & 0xC000 == 0x8000
        if level_deassert or mode in (SMI, _RESERVED_MODE, EXTINT) or not self.s.apic_base & BASE_ENABLE:
            return  # INIT level de-assert only set arbitration IDs, which newer APICs do not have
        if mode in (FIXED, LOWEST) and vector < 16:
            self._error(ESR_SEND_ILLEGAL, now)
            return
        among = None
        if shorthand == 1:
            among = [self]
        elif shorthand == 2:
            among = self.bus.lapics
        elif shorthand == 3:
            among = [a for a in self.bus.lapics if a is not self]
        self.bus.deliver(mode, vector, destination, bool(icr & 0x800), False, now, among)

    def _deliverable(self) -> int:
        """The vector that the CPU would take now, or -1."""
        s = self.s
        vector = s.irr.bit_length() - 1
        if vector < 0 or not self.software_enabled:
            return -1
        return vector if vector & 0xF0 > self.processor_priority() & 0xF0 else -1

    def _extint_pending(self) -> bool:
        s = self.s
        if s.extint_message:
            return True
        if not s.lint[0]:
            return False
        if not s.apic_base & BASE_ENABLE:
            return True
        return s.lvt[_slot(LVT_LINT0)] & (MASKED | 0x700) == EXTINT << 8

    def _update(self, now: int) -> None:
        s = self.s
        level = 1 if self._deliverable() >= 0 or self._extint_pending() else 0
        if level != s.intr:
            s.intr = level
            self.intr(level, now)

    def _arbitration_priority(self) -> int:
        s = self.s
        tpr, isr, irr = s.tpr, max(s.isr.bit_length() - 1, 0), max(s.irr.bit_length() - 1, 0)
        if tpr >> 4 >= irr >> 4 and tpr >> 4 > isr >> 4:
            return tpr
        return max(tpr & 0xF0, isr & 0xF0, irr & 0xF0)

    # --- timer ---

    def event(self, event: str, now: int) -> None:
        """The timer expires."""
        s = self.s
        if self._timer_mode() == TSC_DEADLINE:
            s.deadline = 0
        entry = s.lvt[_slot(LVT_TIMER)]
        self._arm(now)
        if not entry & MASKED:
            self._local_interrupt(entry, now)

    def _timer_mode(self) -> int:
        return self.s.lvt[0] >> 17 & 3

    def _divisor(self) -> int:
        code = self.s.divide & 3 | self.s.divide >> 1 & 4
        return 1 << (code + 1 & 7)

    def _current_count(self, now: int) -> int:
        s = self.s
        if not s.count or self._timer_mode() == TSC_DEADLINE:
            return 0
        elapsed = (now - s.count_at) // self._divisor()
        if elapsed < s.count:
            return s.count - elapsed
        if self._timer_mode() != PERIODIC or not s.initial:
            return 0
        return s.initial - (elapsed - s.count) % s.initial

    def _arm(self, now: int) -> None:
        """Schedule the next expiry, if it can interrupt. An expiry at ``now`` has already happened."""
        s = self.s
        when = None
        mode = self._timer_mode()
        if mode == TSC_DEADLINE:
            # A deadline that has come fires even when masked: the MSR then reads 0 (SDM 12.5.4.1).
            if s.deadline:
                tsc = now + self.tsc_offset() & 0xFFFF_FFFF_FFFF_FFFF
                when = now + max(s.deadline - tsc, 0)
        elif s.count and not s.lvt[0] & MASKED:
            divisor = self._divisor()
            elapsed = (now - s.count_at) // divisor
            if elapsed < s.count:
                when = s.count_at + s.count * divisor
            elif mode == PERIODIC and s.initial:
                rounds = (elapsed - s.count) // s.initial + 1
                when = s.count_at + (s.count + rounds * s.initial) * divisor
        if when is None or when >= _TOO_LATE:
            self.cancel("timer")
        elif when > now:
            self.at(when, "timer")
        else:
            self.cancel("timer")
            s.deadline = 0
            if not s.lvt[0] & MASKED:
                self._local_interrupt(s.lvt[0], now)


def _slot(register: int) -> int:
    return (register - LVT_TIMER) >> 4


def _exists(register: int) -> bool:
    """Whether the offset of a register page is a register."""
    return register in _REGISTERS


_REGISTERS = frozenset(
    {ID, VERSION, TPR, APR, PPR, EOI, RRD, LDR, DFR, SVR, ESR, ICR, ICR2}
    | {*range(ISR, ESR, 0x10), *range(LVT_TIMER, LVT_ERROR + 1, 0x10)}
    | {INITIAL_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI}
)

_X2APIC_WRITABLE = {
    TPR: 0xFF,
    EOI: 0,
    SVR: 0x1FF,
    ESR: 0,
    **{lvt: mask | (REMOTE_IRR | 1 << 12) for lvt, mask in _LVT_WRITABLE.items()},
    INITIAL_COUNT: 0xFFFF_FFFF,
    DIVIDE: 0x0B,
}
"""Registers that WRMSR may write, and the bits that are not reserved (SDM table 12-6)."""
