"""Noise on every port and register, in tables and descriptors: nothing raises or hangs, and no DMA lands
where no table allows it.

The board has all devices. The page tables, each used at one level only, lead to a few pages that are allowed;
so whatever the noise does to registers, entries, caches and bus numbers, translated DMA stays in those pages.
"""

from __future__ import annotations

import random

import pytest

from emu.devices.e1000_regs import ALIASES, REGISTERS
from emu.devices.edu import Edu
from emu.devices.vtd import TE, Vtd
from emu.devices.vtd_tables import passes_through
from tests.devices.dma_rig import FakeRam
from tests.devices.test_platform import APIC, ECAM, HPET, IOAPIC, MMIO, PORTS, Pc

VTD, BAR, LOW_BAR, NIC_BAR, NIC_PORT = 0xFED90000, 0xC0000000, 0xC1000000, 0xC2000000, 0xD000
EXTRAS = ("vtd", "bridge", "e1000", "edu", "bridge/edu")
ROOT, CONTEXTS, QUEUE, INTERRUPTS = 0x10000, 0x11000, 0x30000, 0x40000
TABLES = {level: [0x20000 + 0x1000 * (2 * level + i) for i in range(2)] for level in (1, 2, 3, 4)}
ALLOWED, LARGE = [0x80000 + 0x1000 * i for i in range(8)], 0x200000
REACHED = {page >> 12 for page in ALLOWED} | {(LARGE >> 12) + i for i in range(512)}
ONES = 0xFFFFFFFF
FUNCTIONS = [0x000, 0x008, 0x010, 0x018, 0x0F8, 0x100, 0x500]


class Noise:
    """One run of random operations from a seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.ram = FakeRam()
        self.pc = Pc(ram=self.ram, extras=EXTRAS)
        unit = self.pc.p.extras["vtd"]
        assert isinstance(unit, Vtd)
        self.unit = unit
        self.nic = self.pc.p.card()
        self.granted = self.refused = self.delivered = self.sent = 0
        self.nic.on_transmit = self.transmitted
        self.outside: list[str] = []
        self.pc.p.dma.observers.append(self.observe)
        self.pc.p.dma.message_observers.append(self.message)
        self.tables()
        self.set_up()

    def observe(
        self, tick: int, requester: int, iova: int, phys: int, size: int, write: bool, fault: int
    ) -> None:
        if fault or not self.unit.s.gsts & TE:
            self.refused += bool(fault)
            return
        context = self.unit.s.contexts.get(str(requester))
        if context is not None and passes_through(context[0]):
            return
        self.granted += 1
        pages = set(range(phys >> 12, (phys + size - 1 >> 12) + 1))
        if not pages <= REACHED:
            self.outside.append(f"tick {tick}: {requester:#x} at {iova:#x} reaches {phys:#x}+{size:#x}")

    def message(self, tick: int, requester: int, address: int, data: int, fault: int) -> None:
        self.delivered += not fault

    def transmitted(self, frame: bytes, now: int) -> None:
        self.sent += 1

    def word(self, level: int) -> int:
        """An entry of a table of this level."""
        draw = self.draw
        if level == 1:
            return draw.choice([*ALLOWED, *ALLOWED, LARGE]) | draw.choice([3, 3, 3, 3, 1, 2, 0, 1 << 62 | 3])
        if level == 2 and draw.random() < 0.3:
            return LARGE | 0x83
        return draw.choice(TABLES[level - 1]) | draw.choice([3] * 12 + [1, 2, 0, 0x803, 0x83])

    def tables(self) -> None:
        for level, tables in TABLES.items():
            for table in tables:
                for slot in range(512):
                    self.ram.put64(table + 8 * slot, self.word(level))
        for source in range(256):
            width, domain = self.draw.choice([1, 2]), self.draw.randrange(4)
            top = self.draw.choice(TABLES[width + 2])
            self.ram.put64(CONTEXTS + 16 * source, top | 1, domain << 8 | width)
        for bus in range(256):
            self.ram.put64(ROOT + 16 * bus, CONTEXTS | 1, 0)

    def set_up(self) -> None:
        """Devices decode and master the bus, translation is on."""
        pc = self.pc
        pc.wr(ECAM | 1 << 15 | 0x18, 0x010100)
        pc.wr(ECAM | 1 << 15 | 0x20, 0xC1F0C100)
        pc.wr(ECAM | 1 << 15 | 4, 7, 2)
        for where, bar in ((3 << 15, BAR), (1 << 20, LOW_BAR)):
            pc.wr(ECAM | where | 0x54, 0, 2)  # D0
            pc.wr(ECAM | where | 0x10, bar)
            pc.wr(ECAM | where | 4, 7, 2)
            pc.wr(ECAM | where | 0x44, 0xFEE00000 | self.draw.choice([0, 0x10, 0x30, 0x1000]))
            pc.wr(ECAM | where | 0x42, self.draw.randrange(2), 2)
        for register, value, size in ((0xE0, 0, 2), (0x10, NIC_BAR, 4), (0x18, NIC_PORT, 4), (4, 7, 2)):
            pc.wr(ECAM | 2 << 15 | register, value, size)
        high, low = self.draw.choice([0, 0x10000, 0x50000]), self.draw.choice([0x41, 0x8042])
        for half, value in ((1, high), (0, low)):
            pc.wr(IOAPIC, 0x10 + 2 * 23 + half)
            pc.wr(IOAPIC + 0x10, value)
        pc.wr(VTD | 0x20, ROOT, 8)
        pc.wr(VTD | 0x18, 1 << 30)
        pc.wr(VTD | 0x18, 1 << 31)

    def value(self) -> int:
        draw = self.draw
        return draw.choice([
            draw.getrandbits(32), draw.getrandbits(8), 1 << draw.randrange(32), 0, 0xFFFFFFFF,
            draw.choice([ROOT, QUEUE, INTERRUPTS]) | draw.randrange(16),
        ])  # fmt: skip

    def descriptor(self) -> bytes:
        """Something like a descriptor of the network card, of any kind."""
        draw = self.draw
        address = draw.choice(
            [draw.randrange(1 << 21), draw.randrange(1 << 21), 0, draw.getrandbits(64), 0xFEE00000]
        )
        size, kind = draw.choice([60, 60, 60, 1514, 9000, draw.getrandbits(20)]), draw.choice([0, 0, 1, 1, 2])
        word = size | kind << 20 | draw.getrandbits(8) << 24
        if draw.random() < 0.2:  # where headers are, for what follows
            header = bytes((14, 24, 33, 0, 34, 50, 0, 0)) if draw.random() < 0.5 else draw.randbytes(8)
            word = size | (draw.getrandbits(8) | 0x20) << 24
            tail = bytes((0, draw.choice([54, 0, 255]))) + draw.choice([0, 1, 100, 1460, 65535]).to_bytes(
                2, "little"
            )
            return header + word.to_bytes(4, "little") + tail
        return address.to_bytes(8, "little") + word.to_bytes(4, "little") + draw.randbytes(4)

    def card(self) -> None:
        """One operation on the network card."""
        draw, pc = self.draw, self.pc
        what = draw.randrange(100)
        if what < 15:
            for base, tail in ((0x2800, draw.randrange(256)), (0x3800, draw.randrange(256))):
                pc.wr(NIC_BAR | base, draw.randrange(512) << 12)
                pc.wr(NIC_BAR | base + 4, draw.choice([0, 0, 0, draw.getrandbits(32)]))
                pc.wr(NIC_BAR | base + 8, draw.choice([4096, 4096, 128, 0, draw.getrandbits(20)]))
                pc.wr(NIC_BAR | base + 0x10, draw.choice([0, 0, draw.randrange(256), draw.getrandbits(16)]))
                pc.wr(NIC_BAR | base + 0x18, draw.choice([tail, tail, draw.getrandbits(16)]))
            pc.wr(NIC_BAR | 0x100, 2 | draw.getrandbits(27) if draw.random() < 0.5 else 0x04008022 | 1 << 3)
            pc.wr(NIC_BAR | 0x400, 10)
        elif what < 40:
            page = draw.choice([*ALLOWED, LARGE + (draw.randrange(512) << 12)])
            for _ in range(draw.randrange(1, 16)):
                self.ram.put(page + 16 * draw.randrange(256), self.descriptor())
        elif what < 60:
            to = draw.choice([self.nic.mac, self.nic.mac, b"\xff" * 6, draw.randbytes(6)])
            kind = draw.choice([b"\x88\xb5", b"\x81\x00", b"\x08\x00\x45"])
            self.nic.receive(
                to + draw.randbytes(6) + kind + draw.randbytes(draw.choice([0, 50, 1500, 9000])), pc.now
            )
        elif what < 75:
            pc.wr(NIC_BAR | draw.choice([0x2818, 0x3818]), draw.randrange(256))
            pc.to(pc.now + draw.choice([500, 6000]))
        elif what < 90:
            offset = draw.choice([*REGISTERS, *ALIASES, 0x5200, 0x5400, 0x5404, 0x5600])
            # CTRL without its resets, most of the time
            value = self.value() & (ONES if offset or draw.random() < 0.1 else 0x7BFFFFFF) | (
                0x40 if not offset else 0
            )
            pc.wr(NIC_BAR | offset, value, draw.choice([4, 4, 4, 1, 2, 8]))
        elif what < 94:
            pc.rd(NIC_BAR | draw.randrange(1 << 17) & draw.choice([-1, -4]), draw.choice([1, 2, 4, 8]))
        elif what < 98:
            port = NIC_PORT + draw.randrange(16)
            if draw.random() < 0.5:
                pc.bus.port_read(port, draw.choice([1, 2, 4]), pc.now)
            else:
                pc.bus.port_write(port, draw.choice([1, 2, 4]), self.value() & 0x1FFFF, pc.now)
        else:
            self.nic.plug_cable(draw.random() < 0.8, pc.now)

    def step(self) -> None:
        draw, pc = self.draw, self.pc
        if draw.random() < 0.4:
            self.card()
            return
        what = draw.randrange(100)
        if what < 20:
            at = draw.choice([BAR, LOW_BAR])
            source, destination = (draw.getrandbits(40), 0x40000 + draw.randrange(64))
            command = 1 | draw.randrange(4) << 1
            if command & 2:
                source, destination = destination, source
            for register, value in ((0x80, source), (0x88, destination), (0x90, draw.randrange(4200))):
                pc.wr(at + register, value, 8)
            pc.wr(at + 0x98, command)
        elif what < 30:
            pc.wr(draw.choice([BAR, LOW_BAR]) + draw.choice([4, 8, 0x20, 0x60, 0x64, 0x98]), self.value())
        elif what < 38:
            where = ECAM | draw.choice(FUNCTIONS) << 12 | draw.randrange(0, 256, 4)
            if draw.random() < 0.5:
                pc.rd(where, draw.choice([1, 2, 4]))
            else:
                pc.wr(where, self.value(), draw.choice([1, 2, 4]))
        elif what < 52:
            # Not the pointers: they would lead to tables that hold anything.
            offset = draw.choice([
                0x18, 0x28, 0x2C, 0x34, 0x38, 0x3C, 0x40, 0x80, 0x88, 0x90, 0x9C, 0xA0, 0xB8, 0x100, 0x108,
                0x10C, 0x208, 0x20C, 0x21C,
            ])  # fmt: skip
            pc.wr(VTD | offset, self.value(), draw.choice([4, 4, 8]) if not offset & 7 else 4)
        elif what < 58:
            level = draw.choice([1, 2, 3, 4])
            self.ram.put64(draw.choice(TABLES[level]) + 8 * draw.randrange(512), self.word(level))
        elif what < 62:
            self.ram.put64(draw.choice([QUEUE, INTERRUPTS]) + 8 * draw.randrange(64), draw.getrandbits(64))
        elif what < 64:
            low = draw.randrange(1, 6) | draw.choice([0, 0x10, 0x30, 0x20])
            self.ram.put64(QUEUE + 16 * draw.randrange(16), low, 0)
        elif what < 74:
            port = draw.choice(draw.choice(list(PORTS.values())))
            if port == 0xCF9 or draw.random() < 0.5:
                pc.bus.port_read(port, draw.choice([1, 2, 4]), pc.now)
            else:
                pc.bus.port_write(port, draw.choice([1, 2, 4]), self.value(), pc.now)
        elif what < 84:
            at = draw.choice(draw.choice(list(MMIO.values())))
            if HPET <= at < HPET + 0x400 or draw.random() < 0.5:
                pc.rd(at, draw.choice([1, 2, 4, 8]))  # its timers may be set to fire at every tick
            else:
                pc.wr(at, self.value(), draw.choice([1, 2, 4, 8]))
        elif what < 88:
            at = draw.choice([VTD, IOAPIC, BAR, LOW_BAR, APIC]) + draw.randrange(0x1000)
            pc.rd(at, draw.choice([1, 2, 4, 8]))
        elif what < 90:
            self.set_up()
        elif what < 93 and pc.pins[0]:
            pc.ack()
            pc.wr(APIC | 0xB0, 0)
        else:
            pc.to(pc.now + draw.choice([0, 1, 100, 1500, 6000]))


def run(seed: int, count: int) -> Noise:
    noise = Noise(seed)
    for number in range(count):
        try:
            noise.step()
        except Exception as e:
            raise AssertionError(f"seed {seed}, operation {number}: {e!r}") from e
        assert not noise.outside, f"seed {seed}, operation {number}: {noise.outside[0]}"
    return noise


@pytest.mark.parametrize("seed", range(3))
def test_noise(seed: int) -> None:
    noise = run(seed, 12_000)
    assert noise.granted > 100 and noise.refused > 10 and noise.delivered > 3, (
        f"the noise does not reach DMA: {noise.granted}, {noise.refused}, {noise.delivered}"
    )
    stored = noise.nic.s.statistics["GPRC"]
    assert noise.sent > 3 and stored > 20, (
        f"the noise does not reach the network card: {noise.sent}, {stored}"
    )
    assert any(isinstance(d, Edu) for d in noise.pc.p.extras.values())
    copy = noise.pc.copy()
    assert copy.saved() == noise.pc.saved()


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 120))
def test_a_million_operations(seed: int) -> None:
    run(seed, 50_000)
