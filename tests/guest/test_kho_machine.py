"""Kernels on the machine adopt handovers that the host wrote, good and damaged; and what that costs."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from emu import Machine
from emu.boot import Boot
from emu.debug.sdt import Probes
from emu.machine import StopKind
from kernels.build import build_all, project_root
from kho.abi import KHO_COMPATIBLE, KHO_DATA, PAGE_SIZE, PROP_MEMORY_MAP, RADIX, SETUP_KEXEC_KHO
from kho.fdt import Fdt, Node
from kho.memory import Bytes, Words
from kho.radix import Orders, decompose, write_tree
from tests.guest.running import RELEASES, elf

MIB = 1 << 20
GIB = 1 << 30
SCRATCH = (64 * MIB, 128 * MIB)
TREE = 256 * MIB  # pages of the tree and the root FDT; nobody preserves them
RAM = 8 * GIB  # 2 GiB below 4 GiB, the rest from there on
NONE = np.empty(0, dtype=np.uint64)


@dataclass
class Result:
    text: str
    kind: StopKind
    adopt: int = 0
    """instructions from kho_memory_init to the first page given to the allocator"""


@functools.cache
def image(release: str) -> bytes:
    build_all(project_root(), [f"kernel-{release}"])
    return elf(release).with_suffix(".bzImage").read_bytes()


@functools.cache
def probes(release: str) -> Probes:
    return Probes.read(elf(release))


class Handover:
    """Writes blocks, tree, FDT and scratch list into a machine."""

    def __init__(self, machine: Machine, phys: Words, order: int | Words | Orders) -> None:
        self.machine = machine
        self.next = TREE
        orders = np.broadcast_to(np.asarray(order, dtype=np.uint8), phys.shape)
        self.root, _ = write_tree(self, self.page, phys, orders)
        self.fdt = self.page()
        self.scratch = SCRATCH[0] + SCRATCH[1] - 16 * PAGE_SIZE
        end = sum(SCRATCH)
        self.write(self.scratch, struct.pack("<6Q", *SCRATCH, end, 0, end, 0))
        self.write_fdt(KHO_COMPATIBLE)

    def page(self) -> int:
        self.next += PAGE_SIZE
        return self.next - PAGE_SIZE

    def write(self, phys: int, data: bytes | Bytes) -> None:
        self.machine.memory.write(phys, bytes(data), by="loader")

    def write_fdt(self, compatible: str) -> None:
        tree = self.root.to_bytes(8, "little")
        root = Node("", {"compatible": compatible.encode() + b"\0", PROP_MEMORY_MAP: tree})
        self.write(self.fdt, Fdt.packed(root).write())

    def leaf(self) -> int:
        """The only leaf."""
        at = self.root
        for _ in range(RADIX.depth - 1):
            words = self.machine.memory.read(at, PAGE_SIZE).view("<u8")
            at = int(words[words.nonzero()[0][0]])
        return at

    @property
    def setup_data(self) -> tuple[int, bytes]:
        return SETUP_KEXEC_KHO, KHO_DATA.pack(self.fdt, PAGE_SIZE, self.scratch, 48)


def adopt(
    release: str,
    phys: Words = NONE,
    order: int | Words | Orders = 0,
    damage: Callable[[Handover], None] | None = None,
    memory: int = 512 * MIB,
    cmdline: str = "kho=on kho_scratch=16M,0,0",
) -> Result:
    with Machine(memory) as m:
        handover = Handover(m, phys, order)
        if damage is not None:
            damage(handover)
        moments: dict[str, int] = {}

        def note(event: str) -> None:
            (probe,) = probes(release).at(event)
            m.probe(probe.address, lambda machine, _: bool(moments.update({event: machine.instructions})))

        note("kho:memory_init")
        note("mm:free_all")
        m.boot(Boot(image(release), cmdline=cmdline, setup_data=[handover.setup_data]))
        stop = m.run(max_instructions=400_000_000)
        text = m.console.decode("ascii").replace("\r\n", "\n")
        return Result(text, stop.kind, moments["mm:free_all"] - moments["kho:memory_init"])


def pages_from(start: int, count: int, step: int = 1) -> Words:
    return (np.arange(count, dtype=np.uint64) * np.uint64(step) << np.uint64(12)) + np.uint64(start)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("step", "per_block_max"), [(1, 40), (2, 700)], ids=["side by side", "every other page"]
)
def test_adoption_costs_the_same_for_every_block(release: str, step: int, per_block_max: int) -> None:
    """Up to a gigabyte in single pages. Instructions are counted, so the figures are exact."""
    base = adopt(release, memory=RAM).adopt
    costs = []
    for count in (16384, 65536, 262144):
        result = adopt(release, pages_from(4 * GIB, count, step), memory=RAM)
        assert result.kind is StopKind.POWER_OFF and "KHO: found kexec handover data." in result.text
        assert "cannot be adopted" not in result.text
        costs.append((result.adopt - base) / count)
    assert max(costs) <= per_block_max, costs
    assert max(costs) <= 1.1 * min(costs), f"not flat: {costs}"


@pytest.mark.parametrize("release", RELEASES)
def test_blocks_of_all_orders_are_counted_out(release: str) -> None:
    """What is adopted is missing from the free pages, to the page."""
    blocks = [
        (phys, order)
        for start, n in ((300, 100), (2000, 5000))
        for phys, order in decompose(start * MIB // 8, n)
    ]
    phys = np.array([b[0] for b in blocks], dtype=np.uint64)
    order = np.array([b[1] for b in blocks], dtype=np.uint8)
    with_blocks, without = adopt(release, phys, order), adopt(release)

    def managed(result: Result) -> int:
        (line,) = [
            part for part in result.text.splitlines() if " pages managed, " in part and "luemu:" in part
        ]
        return int(line.split()[1])

    assert managed(without) - managed(with_blocks) == 5100
    assert with_blocks.text.rstrip().endswith("luemu: verdict ok")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("start", [512 * MIB, 4 * GIB], ids=["low", "high"])
def test_memory_in_pieces_is_given_with_its_struct_pages(release: str, start: int) -> None:
    """Each piece of free memory lies in another part of the array of struct pages, whose memory comes from
    such pieces too.
    """
    pages = np.arange(start, start + GIB, PAGE_SIZE, dtype=np.uint64)
    phys = np.sort(np.random.default_rng(3).choice(pages, 4096, replace=False))
    result = adopt(release, phys, memory=3 * GIB)
    assert result.text.rstrip().endswith("luemu: verdict ok"), result.text[-1500:]


def fdt_magic(h: Handover) -> None:
    h.write(h.fdt, bytes(4))


def fdt_version(h: Handover) -> None:
    h.write_fdt("kho-v3")


def no_tree(h: Handover) -> None:
    h.root = 0
    h.write_fdt(KHO_COMPATIBLE)


def no_scratch(h: Handover) -> None:
    h.scratch = 1 << 40


def odd_scratch(h: Handover) -> None:
    h.write(h.scratch, struct.pack("<Q", SCRATCH[0] + PAGE_SIZE))


POPULATE: dict[Callable[[Handover], None], str] = {
    fdt_magic: "KHO: setup: handover FDT ({fdt:#x}) is invalid: -9",
    fdt_version: "KHO: setup: handover FDT ({fdt:#x}) is incompatible with 'kho-v4': 1",
    no_tree: "KHO: failed to get preserved memory map",
    no_scratch: "KHO: setup: failed to memremap scratch (phys=0x10000000000, len=48)",
    odd_scratch: "KHO: failed to mark the scratch region 0x4001000+0x8000000: -22",
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("damage", POPULATE, ids=lambda f: f.__name__)
def test_what_is_refused_at_once_makes_a_cold_boot(release: str, damage: Callable[[Handover], None]) -> None:
    seen: list[Handover] = []

    def apply(h: Handover) -> None:
        damage(h)
        seen.append(h)

    result = adopt(release, pages_from(400 * MIB, 10), damage=apply)
    lines = [line for line in result.text.splitlines() if line.startswith("KHO: ")]
    assert lines[:2] == [POPULATE[damage].format(fdt=seen[0].fdt), "KHO: disabling KHO revival"]
    assert result.text.rstrip().endswith("luemu: verdict ok"), "the kernel went on as after a cold boot"


def bad_root(h: Handover) -> None:
    h.root = RAM
    h.write_fdt(KHO_COMPATIBLE)


def wild_pointer(h: Handover) -> None:
    h.write(h.root, struct.pack("<Q", 0xDEADBEEF000) * 512)


def leaf_of_ones(h: Handover) -> None:
    h.write(h.leaf(), b"\xff" * PAGE_SIZE)


def cycle(h: Handover) -> None:
    h.write(h.root, struct.pack("<Q", h.root) * 512)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("damage", [bad_root, wild_pointer, leaf_of_ones, cycle], ids=lambda f: f.__name__)
def test_a_damaged_tree_is_not_followed(release: str, damage: Callable[[Handover], None]) -> None:
    result = adopt(release, pages_from(400 * MIB, 10), damage=damage)
    assert "KHO: preserved memory cannot be adopted (-22), disabling KHO revival\n" in result.text
    assert result.text.rstrip().endswith("luemu: verdict ok"), result.text[-600:]
