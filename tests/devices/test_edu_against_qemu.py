"""Random programs on QEMU's edu and on ours: registers, transfers and interrupt status must be the same.

QEMU's processor is halted, and its test protocol makes the accesses. A transfer takes 0.1 s there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.dma_rig import FakeRam
from tests.devices.test_against_qemu import Op, Qemu, ours
from tests.devices.test_platform import Pc

BAR, CONFIG = 0xC0000000, 1 << 31 | 3 << 11
RAM = 0x200000
READABLE = [0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98]


class Both:
    """The same operations on both machines; reads are compared."""

    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu
        self.ram = FakeRam()
        self.pc = Pc(ram=self.ram, extras=("edu",))
        self.done: list[Op] = []
        for register, value in ((0x10, BAR), (4, 6)):
            self.do(("outl", 0xCF8, CONFIG | register))
            self.do(("outl", 0xCFC, value))

    def do(self, *ops: Op) -> int:
        value = 0
        for op in ops:
            self.done.append(op)
            theirs, value = self.qemu(op), self.ours(op)
            last = [" ".join([o[0], *(f"{v:#x}" for v in o[1:])]) for o in self.done[-10:]]
            assert theirs == value, f"QEMU reads {theirs:#x}, we read {value:#x}, after {last}"
        return value

    def ours(self, op: Op) -> int:
        if not op[0].startswith(("read", "write")) or op[1] >= FakeRam.SIZE:
            return ours(self.pc, op)
        if len(op) == 3:
            self.ram.put64(op[1], op[2])
            return 0
        return int.from_bytes(self.ram.get(op[1], 8), "little")

    def config(self, register: int) -> int:
        return self.do(("outl", 0xCF8, CONFIG | register), ("inl", 0xCFC))

    def pass_time(self) -> None:
        """Until what runs is done: on QEMU a transfer by its clock, a factorial by a thread."""
        while self.qemu(("readl", BAR + 0x20)) & 1 or self.qemu(("readl", BAR + 0x98)) & 1:
            pass
        while self.pc.clock.state():
            self.pc.to(self.pc.clock.deadline())
        for _ in range(10_000):  # that thread says that it is done before it interrupts
            if self.qemu(("readl", BAR + 0x24)) == self.ours(("readl", BAR + 0x24)):
                break


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    firmware = tmp_path / "firmware"
    firmware.write_bytes(b"\xf4" * 65536)  # HLT, with interrupts off
    qemu = Qemu("-device", "edu,addr=3", "-bios", str(firmware), stopped=False)
    yield Both(qemu)
    qemu.process.kill()
    qemu.process.communicate()


def test_configuration_space(both: Both) -> None:
    for register in (0x00, 0x08, 0x2C, 0x34, 0x3C):
        both.config(register)
    both.do(("outl", 0xCF8, CONFIG | 0x10), ("outl", 0xCFC, 0xFFFFFFFF), ("inl", 0xCFC))
    both.do(("outl", 0xCF8, CONFIG | 0x3C), ("outb", 0xCFC, 0xAB), ("inl", 0xCFC))
    for register, value in ((0x44, 0xFEE01004), (0x48, 0x12345678), (0x4C, 0x4041)):
        both.do(("outl", 0xCF8, CONFIG | register), ("outl", 0xCFC, value), ("inl", 0xCFC))
    both.do(("outl", 0xCF8, CONFIG | 0x40), ("outw", 0xCFE, 0x0001), ("inw", 0xCFE))


@pytest.mark.parametrize("seed", range(2))
def test_random_programs(both: Both, seed: int) -> None:
    draw = random.Random(seed)
    transfers = 0
    for _ in range(100):
        what = draw.randrange(10)
        if what < 2:
            count = draw.choice([1, 2, 64, 1000, 4095])
            inside = 0x40000 + draw.randrange(4096 - count)
            outside = RAM + draw.randrange(0x2000) | draw.choice([0, 1 << 28, 1 << 40])
            command = draw.choice([1, 3, 5, 7])
            source, destination = (inside, outside) if command & 2 else (outside, inside)
            for register, value in ((0x80, source), (0x88, destination), (0x90, count), (0x98, command)):
                both.do(("writeq", BAR + register, value))
            both.pass_time()
            transfers += 1
        elif what < 4:
            number = draw.choice([0, 1, 2, 7, 12, 13, 20, 33, 34, 40])
            both.do(("writel", BAR + 0x64, 1))  # or nothing tells when QEMU's thread interrupts once more
            both.do(("writel", BAR + 0x20, draw.choice([0, 0x80, 0xFF])), ("writel", BAR + 8, number))
            both.pass_time()
        elif what < 6:
            both.do(("writel", BAR + draw.choice([0x60, 0x64, 0x64]), draw.choice([1, 0x100, 6, 0xFFFFFFFF])))
        elif what < 8:
            register = draw.choice([0, 4, 0x24, 0x80, 0x84, 0x8C, 0x40000])
            both.do(("writel", BAR + register, draw.getrandbits(32)))
        elif what < 9:
            both.do(("writeq", RAM + 8 * draw.randrange(0x400), draw.getrandbits(64)))
        for register in READABLE:
            both.do(("readl", BAR + register))
        for register in (0x80, 0x88, 0x90, 0x98):
            both.do(("readq", BAR + register))
        for _ in range(4):
            both.do(("readq", RAM + 8 * draw.randrange(0x800)))
    assert transfers > 10
