"""The pair of 8259A interrupt controllers (Intel 8259A data sheet, 231468; ICH9 data sheet 5.8 for ELCR).

Knows request lines, its four command ports, ELCR, and one output line, INTR. It may not know who raises a
request or whether the output goes to a CPU or to a local APIC.

As in every chipset since the PS/2, the cascade is wired (slave on IR2) and the trigger mode of each line
comes from ELCR: ICW3, and LTIM of ICW1, are accepted and mean nothing. Only 8086 mode is there.

A request in edge mode must stay high until it is acknowledged (data sheet, "Edge and level triggered
modes"): the latch falls with the line. An acknowledge that finds nothing gives IR7 of the chip asked,
without a bit in ISR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emu.clock import Clock
from emu.devices.device import Device, Line, Region

MASTER, SLAVE = 0, 1
CASCADE = 2
SPURIOUS = 7
_ELCR_WRITABLE = (0xF8, 0xDE)  # IRQ 0, 1, 2, 8 and 13 are always edge-triggered


@dataclass
class Chip:
    """One 8259A."""

    lines: int = 0  # levels of IR0..IR7
    latch: int = 0  # edges seen, not acknowledged, line still high
    elcr: int = 0  # 1: level-triggered
    imr: int = 0xFF
    isr: int = 0
    base: int = 0  # ICW2
    icw_next: int = 0  # which ICW the data port expects: 0 (none: OCW1), 2, 3 or 4
    icw_single: bool = False  # ICW1 SNGL: no ICW3 follows
    icw_four: bool = False  # ICW1 IC4: ICW4 follows
    auto_eoi: bool = False
    rotate_on_auto_eoi: bool = False
    special_fully_nested: bool = False
    special_mask: bool = False
    lowest: int = 7  # the line of lowest priority
    read_isr: bool = False
    poll: bool = False
    out: int = 0  # INT


@dataclass
class PicState:
    """Master and slave."""

    chips: list[Chip] = field(default_factory=lambda: [Chip(), Chip()])


class Pic(Device):
    """Both 8259As; ``line`` is the master's INT."""

    s: PicState

    def __init__(self, clock: Clock, line: Line, name: str = "pic") -> None:
        super().__init__(name, clock)
        self.line = line
        self.s = PicState()

    def regions(self) -> Sequence[Region]:
        """0x20, 0xA0 and ELCR at 0x4D0."""
        return (
            Region("io", 0x20, 2, self._read_master, self._write_master, width=1),
            Region("io", 0xA0, 2, self._read_slave, self._write_slave, width=1),
            Region("io", 0x4D0, 2, self._read_elcr, self._write_elcr, width=1),
        )

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.s = PicState([Chip(**chip) for chip in state["chips"]])

    def reset(self, now: int) -> None:
        """Power-on. Lines keep the levels that others drive. Nothing is delivered before ICW1."""
        old = self.s.chips
        self.s = PicState([Chip(lines=c.lines, out=c.out) for c in old])
        self._update(SLAVE, now)
        self._update(MASTER, now)

    def set_irq(self, irq: int, level: int, now: int) -> None:
        """Line IRQ 0 to 15 changes to ``level``. IRQ 2 is the cascade and not for devices."""
        which = irq >> 3
        self._set_line(which, irq & 7, level, now)

    def acknowledge(self, now: int) -> int:
        """The CPU's INTA cycles: returns the vector of the request that is now in service."""
        master = self.s.chips[MASTER]
        irq = self._highest(MASTER)
        if irq < 0:
            return master.base + SPURIOUS
        self._take(MASTER, irq)
        if irq != CASCADE:
            vector = master.base + irq
        else:
            slave = self.s.chips[SLAVE]
            lower = self._highest(SLAVE)
            if lower < 0:
                vector = slave.base + SPURIOUS
            else:
                self._take(SLAVE, lower)
                vector = slave.base + lower
            self._drop_and_update(SLAVE, now)
        self._drop_and_update(MASTER, now)
        return vector

    @property
    def output(self) -> int:
        """Level of INTR."""
        return self.s.chips[MASTER].out

    # --- lines and priorities ---

    def _set_line(self, which: int, irq: int, level: int, now: int) -> None:
        chip = self.s.chips[which]
        bit = 1 << irq
        if level:
            chip.latch |= bit & ~chip.lines
            chip.lines |= bit
        else:
            chip.latch &= ~bit
            chip.lines &= ~bit
        self._update(which, now)

    @staticmethod
    def _irr(chip: Chip) -> int:
        return chip.latch & ~chip.elcr | chip.lines & chip.elcr

    def _highest(self, which: int) -> int:
        """The request that an acknowledge would take, or -1."""
        chip = self.s.chips[which]
        requests = self._irr(chip) & ~chip.imr
        if not requests or chip.icw_next:
            return -1
        # A level in service blocks itself and all below. In special mask mode a masked one does not.
        blocking = chip.isr & ~chip.imr if chip.special_mask else chip.isr
        for step in range(1, 9):
            irq = chip.lowest + step & 7
            bit = 1 << irq
            if blocking & bit:
                # A higher request of the same slave may interrupt in special fully nested mode.
                nested = which == MASTER and irq == CASCADE and chip.special_fully_nested
                return irq if nested and requests & bit else -1
            if requests & bit:
                return irq
        return -1

    def _take(self, which: int, irq: int) -> None:
        chip = self.s.chips[which]
        bit = 1 << irq
        chip.latch &= ~bit  # of a level-triggered line IRR follows the line
        if not chip.auto_eoi:
            chip.isr |= bit
        elif chip.rotate_on_auto_eoi:
            chip.lowest = irq

    def _update(self, which: int, now: int) -> None:
        chip = self.s.chips[which]
        level = 1 if self._highest(which) >= 0 else 0
        if level == chip.out:
            return
        chip.out = level
        if which == SLAVE:
            self._set_line(MASTER, CASCADE, level, now)
        else:
            self.line(level, now)

    def _drop_and_update(self, which: int, now: int) -> None:
        """INT falls with INTA; if another request is waiting it rises again, and that is an edge."""
        chip = self.s.chips[which]
        if chip.out:
            chip.out = 0
            if which == SLAVE:
                self._set_line(MASTER, CASCADE, 0, now)
            else:
                self.line(0, now)
        self._update(which, now)

    # --- ports ---

    def _read_master(self, offset: int, size: int, now: int) -> int:
        return self._read(MASTER, offset, now)

    def _read_slave(self, offset: int, size: int, now: int) -> int:
        return self._read(SLAVE, offset, now)

    def _write_master(self, offset: int, size: int, value: int, now: int) -> None:
        self._write(MASTER, offset, value, now)

    def _write_slave(self, offset: int, size: int, value: int, now: int) -> None:
        self._write(SLAVE, offset, value, now)

    def _read(self, which: int, offset: int, now: int) -> int:
        chip = self.s.chips[which]
        if chip.poll:
            # The read after a poll command is the acknowledge (data sheet, "Poll command").
            chip.poll = False
            irq = self._highest(which)
            if irq < 0:
                return 0
            self._take(which, irq)
            self._drop_and_update(which, now)
            return 0x80 | irq
        if offset:
            return chip.imr
        return chip.isr if chip.read_isr else self._irr(chip)

    def _write(self, which: int, offset: int, value: int, now: int) -> None:
        chip = self.s.chips[which]
        if offset:
            self._write_data(chip, value)
        elif value & 0x10:
            self._write_icw1(which, value)
        elif value & 0x08:
            self._write_ocw3(chip, value)
        else:
            self._write_ocw2(chip, value)
        self._update(which, now)

    def _write_icw1(self, which: int, value: int) -> None:
        """Initialise (data sheet, "Initialization command words 1 and 2", a to f)."""
        old = self.s.chips[which]
        self.s.chips[which] = Chip(
            lines=old.lines,  # the edge sense circuit is reset: a line must rise again to request
            elcr=old.elcr,
            imr=0,
            base=old.base,
            icw_next=2,
            icw_single=bool(value & 2),
            icw_four=bool(value & 1),
            out=old.out,
        )

    @staticmethod
    def _write_data(chip: Chip, value: int) -> None:
        if chip.icw_next == 2:
            chip.base = value & 0xF8
            chip.icw_next = 3 if not chip.icw_single else 4 if chip.icw_four else 0
        elif chip.icw_next == 3:
            chip.icw_next = 4 if chip.icw_four else 0
        elif chip.icw_next == 4:
            chip.auto_eoi = bool(value & 0x02)
            chip.special_fully_nested = bool(value & 0x10)
            chip.icw_next = 0
        else:
            chip.imr = value

    @staticmethod
    def _write_ocw2(chip: Chip, value: int) -> None:
        level = value & 7
        rotate, specific, eoi = value & 0x80, value & 0x40, value & 0x20
        if eoi:
            if not specific:
                # In special mask mode a masked level in service is not cleared by a non-specific EOI.
                in_service = chip.isr & ~chip.imr if chip.special_mask else chip.isr
                for step in range(1, 9):
                    level = chip.lowest + step & 7
                    if in_service >> level & 1:
                        break
                else:
                    return
            chip.isr &= ~(1 << level)
            if rotate:
                chip.lowest = level
        elif specific:
            if rotate:
                chip.lowest = level  # set priority; without R it is no operation
        else:
            chip.rotate_on_auto_eoi = bool(rotate)

    @staticmethod
    def _write_ocw3(chip: Chip, value: int) -> None:
        if value & 0x40:
            chip.special_mask = bool(value & 0x20)
        if value & 0x04:
            chip.poll = True
        elif value & 0x02:
            chip.read_isr = bool(value & 0x01)

    def _read_elcr(self, offset: int, size: int, now: int) -> int:
        return self.s.chips[offset].elcr

    def _write_elcr(self, offset: int, size: int, value: int, now: int) -> None:
        self.s.chips[offset].elcr = value & _ELCR_WRITABLE[offset]
        self._update(offset, now)
