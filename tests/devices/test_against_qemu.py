"""The same register accesses on QEMU's q35 and on our board must read the same.

QEMU runs no guest here: it is stopped, and its test protocol makes the accesses. So no time passes, no
firmware has run, and what is compared are registers, masks, priorities and formats.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator

import pytest

from tests.devices.test_platform import Pc
from tests.oracles import require

IOAPIC, HPET = 0xFEC00000, 0xFED00000
_SIZE = {"b": 1, "w": 2, "l": 4, "q": 8}

Op = tuple[str, int] | tuple[str, int, int]
"""("inb", port), ("outb", port, value), ("readl", address), ("writel", address, value), ..."""


class Qemu:
    """A stopped q35 that makes register accesses."""

    def __init__(self, *options: str, stopped: bool = True) -> None:
        """Not ``stopped``, its time passes; ``options`` then say what its processor runs."""
        command = [str(require("qemu-system-x86_64")), "-machine", "q35", "-accel", "tcg", "-m", "512"]
        command += ["-S"] if stopped else []
        command += [
            "-qtest",
            "stdio",
            "-display",
            "none",
            "-nodefaults",
            "-serial",
            "null",
            "-serial",
            "null",
        ]
        command += ["-rtc", "base=2026-01-01T00:00:00,clock=vm", *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __call__(self, op: Op) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        words = [op[0], *(f"{value:#x}" for value in op[1:])]
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("OK"):
                return int([*line.split(), "0"][1], 0)
            if not line.startswith(("IRQ", "[", "EDU")):  # what a device has to say comes on the same way
                raise AssertionError(f"QEMU does not understand {words}: {line}")
        raise AssertionError("QEMU ended")


@pytest.fixture
def qemu() -> Iterator[Qemu]:
    qemu = Qemu()
    yield qemu
    qemu.process.kill()
    qemu.process.communicate()


def ours(pc: Pc, op: Op) -> int:
    name, where = op[0], op[1]
    size = _SIZE[name[-1]]
    if name.startswith("in"):
        return pc.bus.port_read(where, size, pc.now)
    if name.startswith("read"):
        return pc.rd(where, size)
    assert len(op) == 3
    if name.startswith("out"):
        pc.bus.port_write(where, size, op[2], pc.now)
    else:
        pc.wr(where, op[2], size)
    return 0


def compare(qemu: Qemu, pc: Pc, ops: list[Op], masks: dict[int, int] | None = None) -> None:
    """Every read must agree, in the bits of ``masks`` (all, for an address that is not there)."""
    for number, op in enumerate(ops):
        theirs, mine = qemu(op), ours(pc, op)
        mask = (masks or {}).get(op[1], -1)
        done = ", ".join(
            " ".join([o[0], *(f"{v:#x}" for v in o[1:])]) for o in ops[max(0, number - 8) : number + 1]
        )
        assert theirs & mask == mine & mask, f"QEMU reads {theirs:#x}, we read {mine:#x}, after ... {done}"


@pytest.mark.parametrize("seed", range(3))
def test_8259_pair(qemu: Qemu, seed: int) -> None:
    """Initialisation, then random commands; lines that happen to be high are the same on both."""
    draw = random.Random(seed)
    ops: list[Op] = []
    for port, base, cascade in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
        ops += [
            ("outb", port, 0x11),
            ("outb", port + 1, base),
            ("outb", port + 1, cascade),
            ("outb", port + 1, 1),
        ]
    commands = [
        0x20,
        0x0A,
        0x0B,
        0x0C,
        0xA0,
        0x60,
        0x63,
        0xC2,
        0xC7,
        0xE1,
        0xE5,
        0x68,
        0x48,
        0x80,
        0x00,
        0x40,
    ]
    for _ in range(300):
        chip = draw.choice((0x20, 0xA0))
        ops.append(
            draw.choice(
                (
                    ("outb", chip + 1, draw.randrange(256)),
                    ("outb", chip, draw.choice(commands)),
                    ("outb", 0x4D0 + draw.randrange(2), draw.randrange(256)),
                    ("inb", chip),
                    ("inb", chip + 1),
                    ("inb", 0x4D0),
                    ("inb", 0x4D1),
                )
            )
        )
    compare(qemu, Pc(), ops)


def test_io_apic(qemu: Qemu) -> None:
    """QEMU keeps bits that the data sheet reserves; those are left out."""
    draw = random.Random(4)
    pc = Pc()
    for _ in range(300):
        index = draw.choice((0, 1, *range(0x10, 0x40)))
        mask = 0x1AFFF if index >= 0x10 and not index & 1 else 0xFF000000 if index & 1 and index > 1 else -1
        ops: list[Op] = [("writel", IOAPIC, index), ("readl", IOAPIC)]
        if draw.random() < 0.5:
            # Masked, so that nothing is delivered.
            value = draw.getrandbits(32) | (0x10000 if not index & 1 else 0)
            ops.append(("writel", IOAPIC + 0x10, value))
        ops.append(("readl", IOAPIC + 0x10))
        compare(qemu, pc, ops, {IOAPIC + 0x10: mask})


def test_hpet(qemu: Qemu) -> None:
    ops: list[Op] = [
        ("readq", HPET + r) for r in (0, 0x10, 0x20, 0xF0, 0x100, 0x108, 0x120, 0x128, 0x140, 0x148)
    ]
    for n in range(3):
        timer = HPET + 0x100 + 0x20 * n
        for value in (0x104, 0x14C, 0x2804, 0x2004, 0xFFFF29FF, 0x2800):
            ops += [("writel", timer, value), ("readl", timer)]
        ops += [("writeq", timer + 8, 0x1_2345_6789), ("readq", timer + 8), ("readl", timer + 0xC)]
    ops += [("writeq", HPET + 0xF0, 0x1234567890), ("readq", HPET + 0xF0), ("readl", HPET + 0xF4)]
    compare(qemu, Pc(), ops)


def test_rtc_in_all_formats(qemu: Qemu) -> None:
    pc = Pc()
    pc.p.rtc.s.base_second = 1_767_225_600
    cells = [*range(10), 0x0B, 0x0D, 0x32]
    ops: list[Op] = []
    for mode in (0x02, 0x06, 0x00, 0x04, 0x02):
        ops += [("outb", 0x70, 0x0B), ("outb", 0x71, mode)]
        for cell in cells:
            ops += [("outb", 0x70, cell), ("inb", 0x71)]
    for second, minute, hour, day, month, year, century in (
        (0x59, 0x59, 0x23, 0x28, 0x02, 0x24, 0x20),
        (0x00, 0x30, 0x12, 0x31, 0x12, 0x99, 0x20),
    ):
        ops += [("outb", 0x70, 0x0B), ("outb", 0x71, 0x82)]
        for cell, value in (
            (0, second),
            (2, minute),
            (4, hour),
            (7, day),
            (8, month),
            (9, year),
            (0x32, century),
        ):
            ops += [("outb", 0x70, cell), ("outb", 0x71, value)]
        ops += [("outb", 0x70, 0x0B), ("outb", 0x71, 0x02)]
        for cell in (0, 2, 4, 7, 8, 9, 0x32):
            ops += [("outb", 0x70, cell), ("inb", 0x71)]
    compare(qemu, pc, ops)


def test_uart_probing(qemu: Qemu) -> None:
    """What a driver does to find a 16550A. QEMU does not track modem deltas in loopback: left out."""
    c = 0x3F8
    ops: list[Op] = [
        ("outb", c + 4, 0),
        ("inb", c + 5),
        ("outb", c + 1, 0),
        ("inb", c + 1),
        ("outb", c + 1, 15),
    ]
    ops += [("inb", c + 1), ("outb", c + 1, 0), ("outb", c + 4, 0x1A), ("inb", c + 6), ("outb", c + 4, 0x15)]
    ops += [("inb", c + 6), ("outb", c + 4, 0), ("outb", c + 2, 1), ("inb", c + 2), ("outb", c + 2, 0)]
    ops += [("inb", c + 2), ("outb", c + 1, 2), ("inb", c + 2), ("inb", c + 2), ("outb", c + 1, 0)]
    ops += [("outb", c + 1, 2), ("inb", c + 2), ("outb", c + 7, 0x5A), ("inb", c + 7), ("outb", c + 3, 0x83)]
    ops += [
        ("outb", c, 12),
        ("outb", c + 1, 1),
        ("inb", c),
        ("inb", c + 1),
        ("outb", c + 3, 3),
        ("inb", c + 3),
    ]
    compare(qemu, Pc(), ops, {c + 6: 0xF0})


def test_identity_of_pci_functions(qemu: Qemu) -> None:
    """Vendor, device, class, header, subsystem; and all ones where there is nothing."""
    ops: list[Op] = []
    for slot, function in ((0, 0), (31, 0), (1, 0), (31, 7)):
        for register in (0x00, 0x08, 0x0C, 0x2C, 0x3C, 0x9C):
            ops += [
                ("outl", 0xCF8, 1 << 31 | slot << 11 | function << 8 | register),
                ("inl", 0xCFC),
                ("inw", 0xCFE),
            ]
    ops += [("inl", 0xCF8), ("outl", 0xCF8, 0), ("inl", 0xCFC), ("outb", 0xCF9, 0x02), ("inb", 0xCF9)]
    compare(qemu, Pc(), ops)
