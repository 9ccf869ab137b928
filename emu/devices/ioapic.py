"""I/O APIC (Intel 82093AA data sheet, 290566; ICH9 data sheet 13.5 for the EOI register and version 0x20).

Knows 24 input pins, its redirection table, and the bus that carries messages to local APICs. It may not
know what is wired to a pin.

With interrupt remapping behind it, an entry may also be in remappable format (VT-d 5.1.2.1): bits 63:49 and
11 are an index, bit 48 says so. The chip need not know: as in hardware, the bits of the entry make up
address and data of a message, and whoever carries it looks at them.

The polarity bit is kept and has no effect: a line of this machine says "asserted" or not, and firmware
tables and drivers agree about the voltage among themselves. An edge on a masked pin is lost, as the data
sheet says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from emu.clock import Clock
from emu.devices.device import Device, Region
from emu.devices.lapic import DEFAULT_BASE, ApicBus

BASE = 0xFEC0_0000
PINS = 24
VERSION = (PINS - 1) << 16 | 0x20
INDEX, DATA, EOI = 0x00, 0x10, 0x40

DESTINATION_LOGICAL, PENDING, REMOTE_IRR, LEVEL, MASKED = 1 << 11, 1 << 12, 1 << 14, 1 << 15, 1 << 16
_LOW_WRITABLE = 0x1_AFFF
_HIGH_WRITABLE = 0xFF00_0000 << 32
_HIGH_WRITABLE_REMAPPED = 0xFFFF_0000 << 32
_EDGE_ONLY_MODES = (2, 4, 5)  # SMI, NMI and INIT are always edges


@dataclass
class IoApicState:
    """Registers."""

    index: int = 0
    id: int = 0
    lines: int = 0
    redirection: list[int] = field(default_factory=lambda: [MASKED] * PINS)


class IoApic(Device):
    """24 pins in, messages out."""

    s: IoApicState

    def __init__(self, clock: Clock, bus: ApicBus, base: int = BASE, name: str = "ioapic") -> None:
        super().__init__(name, clock)
        self.bus = bus
        self.base = base
        self.send: Callable[[int, int, int], bool] | None = None
        """``send(address, data, now)``: who carries messages instead of ``bus``, where there is remapping"""
        self.s = IoApicState()
        bus.eoi_listeners.append(self.eoi)

    def regions(self) -> Sequence[Region]:
        """The index/data window."""
        return (Region("mmio", self.base, 0x1000, self.read, self.write, width=4),)

    def reset(self, now: int) -> None:
        """All pins masked; lines are driven by others and stay."""
        self.s = IoApicState(lines=self.s.lines)

    def set_pin(self, pin: int, level: int, now: int) -> None:
        """Input ``pin`` changes to ``level``."""
        s = self.s
        bit = 1 << pin
        if level:
            rising = not s.lines & bit
            s.lines |= bit
            entry = s.redirection[pin]
            if not entry & MASKED and (rising or _is_level(entry)):
                self._send(pin, now)
        else:
            s.lines &= ~bit

    def eoi(self, vector: int, now: int) -> None:
        """A local APIC completed a level-triggered interrupt, or software wrote the EOI register."""
        s = self.s
        for pin, entry in enumerate(s.redirection):
            if entry & (REMOTE_IRR | 0xFF) == REMOTE_IRR | vector:
                s.redirection[pin] = entry & ~REMOTE_IRR
                self._resend(pin, now)

    def read(self, offset: int, size: int, now: int) -> int:
        """Index and data registers; what is between reads as 0."""
        s = self.s
        if offset == INDEX:
            return s.index
        if offset != DATA:
            return 0
        if s.index in (0, 2):  # the arbitration ID follows the ID
            return s.id
        if s.index == 1:
            return VERSION
        pin, high = divmod(s.index - 0x10, 2)
        if 0 <= pin < PINS:
            return s.redirection[pin] >> 32 * high & 0xFFFF_FFFF
        return 0

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        """Registers take 32-bit writes; the index also takes a byte."""
        s = self.s
        if offset == INDEX:
            s.index = value & 0xFF
        elif offset == EOI:
            self.eoi(value & 0xFF, now)
        elif offset == DATA and size == 4:
            if s.index == 0:
                s.id = value & 0x0F00_0000
                return
            pin, high = divmod(s.index - 0x10, 2)
            if not 0 <= pin < PINS:
                return
            entry = s.redirection[pin]
            high_writable = _HIGH_WRITABLE if self.send is None else _HIGH_WRITABLE_REMAPPED
            if high:
                entry = entry & 0xFFFF_FFFF | value << 32 & high_writable
            else:
                entry = entry & (high_writable | REMOTE_IRR) | value & _LOW_WRITABLE
                if not _is_level(entry):
                    entry &= ~REMOTE_IRR
            s.redirection[pin] = entry
            self._resend(pin, now)

    def _resend(self, pin: int, now: int) -> None:
        """A level-triggered pin that is still asserted requests again."""
        entry = self.s.redirection[pin]
        if self.s.lines >> pin & 1 and _is_level(entry) and not entry & MASKED:
            self._send(pin, now)

    def _send(self, pin: int, now: int) -> None:
        entry = self.s.redirection[pin]
        level = _is_level(entry)
        if level and entry & REMOTE_IRR:
            return
        # Before delivery: the message may be taken and completed within the call.
        if level:
            self.s.redirection[pin] = entry | REMOTE_IRR
        if self.send is not None:
            address = DEFAULT_BASE | entry >> 48 << 4 | (4 if entry & DESTINATION_LOGICAL else 0)
            data = entry & 0x7FF | 0x4000 | (0x8000 if level else 0)
            taken = self.send(address, data, now)
        else:
            logical = bool(entry & DESTINATION_LOGICAL)
            destination = ApicBus.widen(entry >> 56, logical)
            taken = self.bus.deliver(entry >> 8 & 7, entry & 0xFF, destination, logical, level, now)
        if level and not taken:
            self.s.redirection[pin] &= ~REMOTE_IRR


def _is_level(entry: int) -> bool:
    return bool(entry & LEVEL) and entry >> 8 & 7 not in _EDGE_ONLY_MODES
