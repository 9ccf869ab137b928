"""Random packets on QEMU's 82540EM and on ours, looped back by the PHY: rings, frames, pointers are the same.

QEMU's processor is halted, and its test protocol makes the accesses. What QEMU leaves out (reset, I/O space,
checksums of legacy descriptors, statuses of checksums) is left out here.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.dma_rig import FakeRam
from tests.devices.test_against_qemu import Op, Qemu, ours
from tests.devices.test_platform import Pc

BAR, CONFIG = 0xC0000000, 1 << 31 | 2 << 11
RX_RING, TX_RING, BUFFERS, DATA = 0x200000, 0x201000, 0x400000, 0x800000
COUNT, SIZE = 16, 16384
DEAF_SECONDS = 1.1
"""QEMU receives nothing for a second after RCTL was written."""


class Both:
    """The same operations on both machines; reads are compared."""

    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu
        self.ram = FakeRam()
        self.pc = Pc(ram=self.ram, extras=("e1000",))
        for register, value in ((0x10, BAR), (4, 6)):
            self.do(("outl", 0xCF8, CONFIG | register))
            self.do(("outl", 0xCFC, value))

    def do(self, op: Op) -> int:
        theirs, value = self.qemu(op), ours(self.pc, op)
        assert theirs == value, f"QEMU reads {theirs:#x}, we read {value:#x}: {op}"
        return value

    def r(self, register: int) -> int:
        return self.do(("readl", BAR + register))

    def w(self, register: int, value: int) -> None:
        self.do(("writel", BAR + register, value))

    def put(self, at: int, data: bytes) -> None:
        assert self.qemu.process.stdin is not None and self.qemu.process.stdout is not None
        self.qemu.process.stdin.write(f"write {at:#x} {len(data)} 0x{data.hex()}\n")
        self.qemu.process.stdin.flush()
        assert self.qemu.process.stdout.readline().startswith("OK")
        self.ram.put(at, data)

    def get(self, at: int, size: int) -> tuple[bytes, bytes]:
        """What is in both memories."""
        return self.qemu(("read", at, size)).to_bytes(size, "big"), self.ram.get(at, size)

    def same(self, at: int, size: int, what: str) -> bytes:
        theirs, mine = self.get(at, size)
        assert theirs == mine, f"{what} at {at:#x}: QEMU has {theirs.hex()}, we have {mine.hex()}"
        return mine


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    firmware = tmp_path / "firmware"
    firmware.write_bytes(b"\xf4" * 65536)  # HLT, with interrupts off
    qemu = Qemu("-device", "e1000,addr=2,romfile=", "-bios", str(firmware), stopped=False)
    yield Both(qemu)
    qemu.process.kill()
    qemu.process.communicate()


def packet(draw: random.Random) -> list[bytes]:
    """Descriptors of one packet of `DATA`: legacy, or a context and data."""
    cuts = sorted(draw.sample(range(1, 3000), draw.randrange(3)))
    size = draw.choice([20, 60, 61, 300, 1514, 4001, 9014])
    pieces = (
        [b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True) if b > a] if size > 3000 else [size]
    )
    at = DATA + draw.randrange(0x8000)
    out = []
    new = draw.random() < 0.7
    segment = draw.choice([0, 0, max(size // 9, 300), 1000, 1460]) if new and size > 54 else 0
    if segment and not (size - 54) % segment:
        segment += 1  # QEMU would send a header alone at the end
    if new:
        tcp = draw.randrange(2)
        where = 50 if tcp else 40
        end = draw.choice([0, 0, 0, size // 2 if size > 200 and not segment else 0])
        command = 0x20 | 2 | tcp | (4 if segment else 0)
        word = size - 54 & 0xFFFFF | command << 24
        header = 54 if segment else 0
        out.append(struct.pack("<BBHBBHIBBH", 14, 24, 33, 34, where, end, word, 0, header, segment))
    options = draw.randrange(4) if size > 60 else 0
    for i, piece in enumerate(pieces):
        command = 2 | (9 if i == len(pieces) - 1 else 0)
        if new:
            word = piece | 1 << 20 | (command | 0x20 | (4 if segment else 0)) << 24
            out.append(struct.pack("<QIBBH", at, word, 0, options, 0))
        else:
            out.append(struct.pack("<QHBBBBH", at, piece, 0, command, 0, 0, 0))
        at += piece
    return out


@pytest.mark.parametrize("seed", range(2))
def test_random_packets(both: Both, seed: int) -> None:
    draw = random.Random(seed)
    both.put(DATA, draw.randbytes(0x4000))
    both.put(DATA + 0x4000, draw.randbytes(0x4000))
    both.put(DATA + 0x8000, draw.randbytes(0x4000))
    for i in range(COUNT):
        both.put(RX_RING + 16 * i, struct.pack("<QQ", BUFFERS + SIZE * i, 0))
    for base, ring in ((0x2800, RX_RING), (0x3800, TX_RING)):
        both.w(base, ring)
        both.w(base + 8, 16 * COUNT)
    both.w(0x2818, COUNT - 1)
    both.w(0, 1 << 6)
    both.w(0x20, 1 << 26 | 1 << 21 | 0x4140)
    both.w(0x400, 0x0004010A)
    both.w(0x100, 2 | 8 | 16 | 32 | 1 << 15 | 1 << 16 | 1 << 25 | 1 << 26)
    time.sleep(DEAF_SECONDS)
    tail = head = total = 0
    for _ in range(60):
        descriptors = packet(draw)
        for one in descriptors:
            both.put(TX_RING + 16 * tail, one)
            tail = (tail + 1) % COUNT
        both.w(0x3818, tail)
        both.pc.to(both.pc.now + 1_000_000)
        assert both.r(0x3810) == tail
        both.same(TX_RING, 16 * COUNT, "transmit ring")
        try:
            end = both.r(0x2810)
        except AssertionError as e:
            raise AssertionError(f"{e}: {[one.hex() for one in descriptors]}") from None
        while head != end:
            theirs, mine = both.get(RX_RING + 16 * head, 16)
            assert theirs[:10] == mine[:10] and (theirs[12] ^ mine[12]) & 3 == 0, (theirs.hex(), mine.hex())
            both.same(BUFFERS + SIZE * head, int.from_bytes(mine[8:10], "little"), "frame")
            both.put(RX_RING + 16 * head + 8, bytes(8))
            head = (head + 1) % COUNT
            total += 1
        both.w(0x2818, (head - 1) % COUNT)
        for counter in (0x4074, 0x4080):
            both.r(counter)
    assert total > 60


def test_registers(both: Both) -> None:
    """What the manual gives a reset value or a mask, and QEMU implements."""
    draw = random.Random(9)
    for register in (
        0x2800,
        0x2804,
        0x2810,
        0x2818,
        0x3800,
        0x3804,
        0x3810,
        0x3818,
        0x5200,
        0x53FC,
        0x5600,
        0x57FC,
    ):
        value = draw.getrandbits(15 if register & 0xFFF in (0x810, 0x818) else 32) & ~0xF
        both.w(register, value)
        both.r(register)
    for register in (0x5400, 0x3820, 0xD0):
        both.r(register)
    both.w(0xD0, 0x95)
    both.w(0xD8, 0x11)
    both.r(0xD0)
    both.w(0xC8, 0x4)
    both.r(0xD8 - 8)
    for word in range(64):
        both.w(0x14, word << 8 | 1)
        if word < 3:  # what follows is the vendor's
            both.r(0x14)
