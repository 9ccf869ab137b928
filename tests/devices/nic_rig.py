"""A network card on a board with RAM, and the smallest driver: rings that a test fills and reads by hand.

Registers and descriptors are written as numbers from the manual, not with the model's names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.devices.acpipm import ResetControl
from emu.devices.device import Line
from emu.devices.e1000 import E1000
from emu.devices.pci import PciHost
from emu.dma import DmaLog, DmaPort
from tests.devices.dma_rig import FakeRam, InterruptBus
from tests.devices.rig import Rig, Wire

ECAM, BAR, PORT = 0xB0000000, 0xC0000000, 0xC000
CTRL, STATUS, EECD, EERD, MDIC = 0x0, 0x8, 0x10, 0x14, 0x20
ICR, ITR, ICS, IMS, IMC = 0xC0, 0xC4, 0xC8, 0xD0, 0xD8
RCTL, TCTL, PBA = 0x100, 0x400, 0x1000
RDBAL, RDBAH, RDLEN, RDH, RDT, RDTR, RADV, RSRPD = (
    0x2800, 0x2804, 0x2808, 0x2810, 0x2818, 0x2820, 0x282C, 0x2C00,
)  # fmt: skip
TDBAL, TDLEN, TDH, TDT, TIDV, TXDCTL, TADV = 0x3800, 0x3808, 0x3810, 0x3818, 0x3820, 0x3828, 0x382C
RXCSUM, MTA, RA, VFTA = 0x5000, 0x5200, 0x5400, 0x5600
EN, UPE, MPE, LPE, BAM, BSEX, SECRC = 2, 8, 16, 32, 1 << 15, 1 << 25, 1 << 26
TXDW, TXQE, LSC, RXDMT0, RXO, RXT0, MDAC = 1, 2, 4, 0x10, 0x40, 0x80, 0x200
EOP, IFCS, IC, TSE, RS, DEXT, VLE, IDE = 1, 2, 4, 4, 8, 0x20, 0x40, 0x80

RX_RING, TX_RING, RX_BUFFERS, TX_BUFFERS = 0x100000, 0x110000, 0x200000, 0x600000
OUR_MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("0200000000aa")


def frame(size: int = 60, to: bytes = OUR_MAC, kind: int = 0x88B5, mark: int = 0) -> bytes:
    """Any frame of ``size`` bytes."""
    head = to + OTHER + kind.to_bytes(2, "big")
    return head + bytes((mark + i * 7) & 0xFF for i in range(size - len(head)))


@dataclass(frozen=True)
class Received:
    """A receive descriptor that was written back, and what is in its buffer."""

    data: bytes
    sum: int
    status: int
    errors: int
    special: int


class NicBoard(Rig):
    """One card at 00:02.0, decoding and mastering the bus; nothing of the card itself is set up."""

    def __init__(self, name: str = "e1000") -> None:
        super().__init__()
        self.wire = Wire()
        self.ram = FakeRam()
        self.interrupts = InterruptBus()
        self.dma = DmaPort(self.ram, self.interrupts)
        self.log = DmaLog()
        self.dma.observers.append(self.log)
        reset = ResetControl(self.clock, lambda kind, now: None)
        self.host = PciHost(self.clock, self.bus, reset, self.line, self.dma)
        self.add(self.host)
        self.nic = E1000(self.clock, 2, name)
        self.host.plug(self.nic)
        self.sent: list[tuple[int, bytes]] = []
        self.nic.on_transmit = lambda frame, now: self.sent.append((now, frame))
        self.cfg(0x10, BAR)
        self.cfg(0x18, PORT)
        self.cfg(4, 7, 2)
        self.count = 0
        self.size = 2048
        self.next_rx = self.next_tx = self.tx_room = 0

    def line(self, gsi: int) -> Line:
        assert gsi == 22
        return self.wire

    def irq(self) -> bool:
        """Whether the card asserts its interrupt."""
        return bool(self.wire.level)

    def cfg(self, register: int, value: int, size: int = 4) -> None:
        self.write(ECAM | 2 << 15 | register, value, size)

    def r(self, register: int, size: int = 4) -> int:
        return self.read(BAR + register, size)

    def w(self, register: int, value: int, size: int = 4) -> None:
        self.write(BAR + register, value, size)

    # --- receiving ---

    def receive_ring(self, count: int = 16, control: int = EN | BAM | SECRC, size: int = 2048) -> None:
        """A ring with all but one of its descriptors given to the card."""
        self.count, self.size, self.next_rx = count, size, 0
        for i in range(count):
            self.ram.put(RX_RING + 16 * i, struct.pack("<QQ", RX_BUFFERS + size * i, 0))
        self.w(RDBAL, RX_RING)
        self.w(RDLEN, 16 * count)
        self.w(RDH, 0)
        self.w(RDT, count - 1)
        self.w(RCTL, control)

    def arrive(self, *frames: bytes) -> None:
        for one in frames:
            self.nic.receive(one, self.now)

    def take(self) -> Received | None:
        """The next descriptor, if it is done; it stays with software."""
        at = RX_RING + 16 * self.next_rx
        address, length, checksum, status, errors, special = struct.unpack("<QHHBBH", self.ram.get(at, 16))
        if not status & 1:
            return None
        self.ram.put(at + 8, bytes(8))
        self.next_rx = (self.next_rx + 1) % self.count
        return Received(self.ram.get(address, length), checksum, status, errors, special)

    def take_all(self) -> list[Received]:
        out = []
        while (one := self.take()) is not None:
            out.append(one)
        return out

    def give(self, count: int) -> None:
        """Hand ``count`` descriptors back."""
        self.w(RDT, (self.r(RDT) + count) % self.count)

    # --- sending ---

    def transmit_ring(self, count: int = 16, control: int = EN | 8) -> None:
        self.tx_count, self.next_tx = count, 0
        self.w(TDBAL, TX_RING)
        self.w(TDLEN, 16 * count)
        self.w(TDH, 0)
        self.w(TDT, 0)
        self.w(TCTL, control)

    def put_tx(self, descriptor: bytes) -> None:
        self.ram.put(TX_RING + 16 * self.next_tx, descriptor)
        self.next_tx = (self.next_tx + 1) % self.tx_count

    def buffer(self, data: bytes) -> int:
        """Data somewhere in memory; where."""
        at = TX_BUFFERS + self.tx_room
        self.tx_room = (self.tx_room + len(data) + 64) % 0x200000
        self.ram.put(at, data)
        return at

    def legacy(self, data: bytes, command: int, cso: int = 0, css: int = 0, special: int = 0) -> None:
        """A legacy descriptor; the tail is not moved."""
        at = self.buffer(data)
        self.put_tx(struct.pack("<QHBBBBH", at, len(data), cso, command, 0, css, special))

    def data(self, data: bytes, command: int, options: int = 0) -> None:
        """A data descriptor."""
        at, word = self.buffer(data), len(data) | 1 << 20 | (command | DEXT) << 24
        self.put_tx(struct.pack("<QIBBH", at, word, 0, options, 0))

    def context(
        self,
        ip: tuple[int, int, int],
        tcp: tuple[int, int, int],
        payload: int,
        command: int,
        header: int,
        mss: int,
    ) -> None:
        """A context descriptor: (start, where, end) of both checksums."""
        word = payload | (command | DEXT) << 24
        self.put_tx(struct.pack("<BBHBBHIBBH", *ip, *tcp, word, 0, header, mss))

    def go(self, ticks: int = 100_000) -> list[bytes]:
        """Move the tail, wait, and return what left."""
        self.w(TDT, self.next_tx)
        before = len(self.sent)
        self.after(ticks)
        return [one for _, one in self.sent[before:]]
