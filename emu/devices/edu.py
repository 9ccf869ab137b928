"""The educational device, 1234:11e8, by QEMU's description of it (docs/specs/edu): small, and a bus master.

The device to read first: one BAR with a few registers, one interrupt, one DMA engine, all in virtual time.

| offset | | |
|---|---|---|
| 0x00 | RO | identification 0x010000ed |
| 0x04 | RW | liveness: reads as the inverse of what was written |
| 0x08 | RW | factorial: a number is replaced by its factorial, in 32 bits |
| 0x20 | RW | status: 0x01 computing (RO), 0x80 raise interrupt 0x1 when done |
| 0x24 | RO | interrupt status |
| 0x60 | WO | raise these interrupt bits |
| 0x64 | WO | acknowledge these interrupt bits |
| 0x80, 0x88, 0x90 | RW | DMA source, destination, bytes |
| 0x98 | RW | DMA command: 0x1 start and running, 0x2 from device to memory, 0x4 raise interrupt 0x100 |
| 0x40000 | | 4 KiB buffer, reached by DMA only |

Registers below 0x80 take 4 bytes, the others 4 or 8; other accesses read as ones and do nothing. An
interrupt is a message for each raise while MSI is enabled, else the level of INTA.

A factorial takes `FACTORIAL_TICKS`. A transfer takes `DMA_TICKS` and one tick a byte; memory is read or
written at its end, all at once, with addresses cut to 28 bits. Registers of a transfer that runs cannot be
written. A transfer that would leave the buffer moves nothing and is done at once at its end (QEMU stops the
machine).
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.clock import Clock
from emu.devices.pci import COMMAND, COMMAND_MASTER, Bar, PciFunction, PciState

IDENTITY = 0x0100_00ED
ID, LIVENESS, FACTORIAL, STATUS_REGISTER, INTERRUPTS, RAISE, ACKNOWLEDGE = 0, 4, 8, 0x20, 0x24, 0x60, 0x64
SOURCE, DESTINATION, COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
COMPUTING, FACTORIAL_INTERRUPTS = 0x01, 0x80
START, TO_MEMORY, DMA_INTERRUPTS = 1, 2, 4
FACTORIAL_DONE, DMA_DONE = 0x001, 0x100

BUFFER, BUFFER_SIZE = 0x40000, 4096
ADDRESS_MASK = (1 << 28) - 1
FACTORIAL_TICKS = 1_000
DMA_TICKS = 1_000


@dataclass
class EduState(PciState):
    """Registers, and the buffer."""

    liveness: int = 0
    factorial: int = 0
    status: int = 0
    interrupts: int = 0
    source: int = 0
    destination: int = 0
    count: int = 0
    command: int = 0
    buffer: bytes = bytes(BUFFER_SIZE)


class Edu(PciFunction):
    """One edu."""

    s: EduState

    def __init__(self, clock: Clock, slot: int, name: str = "edu") -> None:
        super().__init__(
            name, clock, slot, vendor=0x1234, device=0x11E8, class_code=0x00FF00, revision=0x10,
            subsystem=(0x1AF4, 0x1100), pin=1,
        )  # fmt: skip
        self.s = EduState(bytes(self.size))
        self.allow(COMMAND, 2, COMMAND_MASTER)
        self.add_bar(Bar(0, "mmio", 1 << 20, self._read, self._write, width=8))
        self.add_msi()
        self.add_power_management()
        self.add_function_reset()

    def reset(self, now: int) -> None:
        """Power-on: what was being computed or moved is forgotten."""
        self.cancel("factorial")
        self.cancel("dma")
        self.s = EduState(self.s.config)
        super().reset(now)

    def event(self, event: str, now: int) -> None:
        """Something is done."""
        s = self.s
        if event == "factorial":
            s.factorial = _factorial(s.factorial)
            s.status &= ~COMPUTING
            if s.status & FACTORIAL_INTERRUPTS:
                self._raise(FACTORIAL_DONE, now)
        else:
            self._transfer(now)
            s.command &= ~START
            if s.command & DMA_INTERRUPTS:
                self._raise(DMA_DONE, now)

    def _read(self, offset: int, size: int, now: int) -> int:
        s = self.s
        if size == 4 or (size == 8 and offset >= SOURCE):
            values = {
                ID: IDENTITY, LIVENESS: s.liveness, FACTORIAL: s.factorial, STATUS_REGISTER: s.status,
                INTERRUPTS: s.interrupts, SOURCE: s.source, DESTINATION: s.destination, COUNT: s.count,
                DMA_COMMAND: s.command,
            }  # fmt: skip
            if offset in values:
                return values[offset]
        return (1 << 8 * size) - 1

    def _write(self, offset: int, size: int, value: int, now: int) -> None:
        s = self.s
        if size != 4 and not (size == 8 and offset >= SOURCE):
            return
        if offset == LIVENESS:
            s.liveness = ~value & 0xFFFF_FFFF
        elif offset == FACTORIAL and not s.status & COMPUTING:
            s.factorial = value
            s.status |= COMPUTING
            self.at(now + FACTORIAL_TICKS, "factorial")
        elif offset == STATUS_REGISTER:
            s.status = s.status & COMPUTING | value & FACTORIAL_INTERRUPTS
        elif offset == RAISE:
            self._raise(value, now)
        elif offset == ACKNOWLEDGE:
            s.interrupts &= ~value
            self.set_intx(1 if s.interrupts and not self.msi_enabled else 0, now)
        elif not s.command & START:
            if offset == SOURCE:
                s.source = value
            elif offset == DESTINATION:
                s.destination = value
            elif offset == COUNT:
                s.count = value
            elif offset == DMA_COMMAND and value & START:
                s.command = value
                self.at(now + DMA_TICKS + min(s.count, BUFFER_SIZE), "dma")

    def _raise(self, bits: int, now: int) -> None:
        self.s.interrupts |= bits
        if self.msi_enabled:
            self.send_msi(now)
        elif self.s.interrupts:
            self.set_intx(1, now)

    def _transfer(self, now: int) -> None:
        s = self.s
        outward = bool(s.command & TO_MEMORY)
        at = (s.source if outward else s.destination) - BUFFER
        if at < 0 or not 0 < s.count <= BUFFER_SIZE - at:
            return
        if outward:
            self.dma_write(s.destination & ADDRESS_MASK, s.buffer[at : at + s.count], now)
        else:
            data = self.dma_read(s.source & ADDRESS_MASK, s.count, now)
            s.buffer = s.buffer[:at] + data + s.buffer[at + s.count :]


def _factorial(number: int) -> int:
    out = 1
    for factor in range(2, min(number, 34) + 1):  # from 34 on, all 32 bits are 0
        out = out * factor & 0xFFFF_FFFF
    return out
