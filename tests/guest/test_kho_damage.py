"""Everything that can be wrong with a handover: the next kernel says so and boots as if cold."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kho.abi import RADIX
from kho.fdt import Fdt, Node
from tests.guest.kho_cases import (
    NEW_PAGES,
    NOINIT,
    OLD_PAGES,
    RAM_SIZE,
    SCRATCH,
    Populate,
    change_root,
    cold,
    preserve_vmalloc,
    retrieve,
    tree_node,
    update,
)
from tests.guest.kho_host import DIRECT_MAP, MIB, PAGE, SCRATCH_ALIGN, Kernel, Ram


def test_bad_fdts_make_a_cold_boot(old: Kernel, library: Path, ram: Ram) -> None:
    """The messages are those of Linux 7.2."""
    handed = old.handover()
    old.close()
    fdt = handed[0]
    good = ram.read(fdt, PAGE).tobytes()
    prefix = f"KHO: setup: handover FDT ({fdt:#x}) is "

    def attempt(line: str, handover: Populate = handed) -> None:
        with cold(library, ram, handover) as kernel:
            assert kernel.log.splitlines()[:2] == [line, "KHO: disabling KHO revival"]
            assert kernel.lib.kho_is_enabled()
            assert kernel.scratch(), "a cold boot has scratch of its own"
        ram.write(fdt, good)

    ram.write(fdt, bytes(4))
    attempt(prefix + "invalid: -9")
    ram.write(fdt, good[:4] + b"\xff\xff" + good[6:])
    attempt(prefix + "invalid: -8")
    ram.write(fdt + 0x38, bytes(4))
    attempt(prefix + "invalid: -11")
    change_root(ram, fdt, lambda root: root.properties.update(compatible=b"kho-v3\0"))
    attempt(prefix + "incompatible with 'kho-v4': 1")
    change_root(ram, fdt, lambda root: root.properties.pop("compatible") and None)
    attempt(prefix + "incompatible with 'kho-v4': -1")
    for value in (bytes(8), bytes(4), None):

        def change(root: Node, value: bytes | None = value) -> None:
            if value is None:
                del root.properties["preserved-memory-map"]
            else:
                root.properties["preserved-memory-map"] = value

        change_root(ram, fdt, change)
        attempt("KHO: failed to get preserved memory map")
    for phys in (0, 8, RAM_SIZE, 0xA0000, 1 << 62):
        attempt(f"KHO: setup: failed to memremap FDT ({phys:#x})", (phys, *handed[1:]))
    for size in (0, 2**64 - PAGE):
        attempt(f"KHO: setup: failed to memremap FDT ({fdt:#x})", (fdt, size, *handed[2:]))


def test_bad_scratch_lists_make_a_cold_boot(old: Kernel, library: Path, ram: Ram) -> None:
    handed = old.handover()
    old.close()
    fdt, size, array, length = handed
    good = ram.read(array, length).tobytes()

    def attempt(line: str, address: int = array, bytes_: int = length) -> None:
        with cold(library, ram, (fdt, size, address, bytes_)) as kernel:
            assert kernel.log.splitlines()[:2] == [line, "KHO: disabling KHO revival"]
            assert not any(flags & SCRATCH for *_, flags in kernel.regions(reserved=False))
        ram.write(array, good)

    for address, bytes_ in (
        (0, 48),
        (array, 0),
        (array, 15),
        (array, 1 << 20),
        (array + 1, 48),
        (RAM_SIZE, 48),
    ):
        attempt(f"KHO: setup: failed to memremap scratch (phys={address:#x}, len={bytes_})", address, bytes_)
    words = ram.words(array, 6)
    start = int(words[0])
    bad = "KHO: failed to mark the scratch region "
    words[0] += PAGE
    attempt(f"{bad}{start + PAGE:#x}+0x800000: -22")
    words[1] += PAGE
    attempt(f"{bad}{start:#x}+{0x801000:#x}: -22")
    words[1] = 2**64 - SCRATCH_ALIGN
    attempt(f"{bad}{start:#x}+{2**64 - SCRATCH_ALIGN:#x}: -22")
    words[2:4] = [RAM_SIZE, SCRATCH_ALIGN]
    attempt(f"{bad}{RAM_SIZE:#x}+0x400000: -22")
    words[4:6] = [start, SCRATCH_ALIGN]
    attempt(f"{bad}{start:#x}+0x400000: -17")
    other = 20 * MIB
    ram.write(other, good)
    attempt("KHO: setup: handover FDT in scratch, or scratch array outside of it", other)


@pytest.mark.parametrize("level", range(6))
@pytest.mark.parametrize("where", ["unaligned", "above RAM", "hole", "scratch", "far"])
def test_a_bad_node_address_loses_the_handover(
    old: Kernel, library: Path, ram: Ram, level: int, where: str
) -> None:
    handed = old.handover()
    scratch = old.scratch()[0][0]
    root = old.lib.host_tree_root()
    old.close()
    bad = {"unaligned": 8, "above RAM": RAM_SIZE, "hole": 0xA0000, "scratch": scratch, "far": 1 << 62}[where]
    bad += tree_node(ram, root, level) if where == "unaligned" else 0
    if level == 0:
        change_root(
            ram, handed[0], lambda r: r.properties.update({"preserved-memory-map": bad.to_bytes(8, "little")})
        )
    else:
        table = ram.words(tree_node(ram, root, level - 1))
        table[table.nonzero()[0][0]] = bad
    with cold(library, ram, handed) as kernel:
        assert (
            f"KHO: page {bad:#x} of the tree, level {5 - level}, is not a page of RAM outside scratch"
            in kernel.log
        )
        assert "KHO: preserved memory cannot be adopted (-22), disabling KHO revival" in kernel.log
        assert not any(flags & NOINIT for *_, flags in kernel.regions(reserved=True))
        assert kernel.scratch()[0] == (scratch, 8 * MIB), "scratch is still that of the chain"
        assert "pageblock" not in kernel.log, "scratch was released a second time"


def test_a_node_in_two_places_loses_the_handover(library: Path) -> None:
    """The same leaf for two parts of memory: every block that it says is RAM, in both."""
    with Ram(256 * MIB) as ram:
        with Kernel(library, ram, OLD_PAGES) as kernel:
            kernel.boot()
            handed, root = kernel.handover(), kernel.lib.host_tree_root()
        table = ram.words(tree_node(ram, root, 4))
        assert table[0] and not table[1]
        table[1] = table[0]
        with cold(library, ram, handed) as kernel:
            assert f"KHO: page {int(table[0]):#x} is in the tree more than once" in kernel.log


def test_a_cycle_in_the_tree_ends(old: Kernel, library: Path, ram: Ram) -> None:
    handed = old.handover()
    address = old.lib.host_tree_root()
    old.close()
    ram.words(address)[:] = address
    cold(library, ram, handed).close()


def preserve_in_tree(ram: Ram, handed: Populate, pfn: int, order: int) -> None:
    """Sets the bit of a block, with nodes from a part of memory that nobody uses."""
    key = RADIX.key(pfn * PAGE, order)
    node = Fdt.parse(ram.read(handed[0], PAGE).tobytes()).root.u64("preserved-memory-map")
    fresh = 50 * MIB + order % 16 * 16 * PAGE
    for level in range(RADIX.depth - 1, 0, -1):
        table = ram.words(node)
        index = key >> (RADIX.leaf_bits + (level - 1) * RADIX.table_bits) & 511
        if not table[index]:
            table[index] = fresh
            fresh += PAGE
        node = int(table[index])
    bit = key & (1 << RADIX.leaf_bits) - 1
    ram.bytes[node + bit // 8] |= 1 << bit % 8


@pytest.mark.parametrize(
    ("pfn", "order"),
    [
        (RAM_SIZE // PAGE, 0), (RAM_SIZE // PAGE - 1, 0), (0, 14), (0, 15), (0x9F, 0), (0xA0, 5),
        (1 << 40, 0), (1 << 51, 0), (1 << 40, 30), (0, 40), (0, 52), (1 << 51, 51),
    ],
)  # fmt: skip
def test_blocks_that_are_no_memory(old: Kernel, library: Path, ram: Ram, pfn: int, order: int) -> None:
    handed = old.handover()
    in_ram = ((pfn + (1 << order)) * PAGE <= RAM_SIZE) and pfn not in (0x9F, 0xA0) and order < 14
    old.close()
    preserve_in_tree(ram, handed, pfn, order)
    with update(library, ram, handed) as kernel:
        assert kernel.lib.is_kho_boot() == in_ram, kernel.log


def test_a_block_in_scratch_loses_the_handover(old: Kernel, library: Path, ram: Ram) -> None:
    handed = old.handover()
    start = old.scratch()[0][0]
    old.close()
    preserve_in_tree(ram, handed, start // PAGE, 0)
    with cold(library, ram, handed) as kernel:
        assert (
            f"KHO: preserved memory {start:#x}, 1 blocks of order 0, is not RAM outside scratch" in kernel.log
        )


@pytest.mark.parametrize("order", [0, 3, 4, 6])
def test_overlapping_blocks_lose_the_handover(old: Kernel, library: Path, ram: Ram, order: int) -> None:
    handed = old.handover()
    old.close()
    preserve_in_tree(ram, handed, 0x3000, 5)
    preserve_in_tree(ram, handed, 0x3000, order)
    with cold(library, ram, handed) as kernel:
        assert "KHO: preserved memory 0x3000000 is in more than one block" in kernel.log


def test_the_key_that_means_no_block(old: Kernel, library: Path, ram: Ram) -> None:
    handed = old.handover()
    old.close()
    preserve_in_tree(ram, handed, 0, 40)  # makes the leaf of the smallest keys
    leaf = Fdt.parse(ram.read(handed[0], PAGE).tobytes()).root.u64("preserved-memory-map")
    for _ in range(5):
        leaf = int(ram.words(leaf)[0])
    ram.bytes[leaf : leaf + PAGE] = 0
    with update(library, ram, handed) as kernel:
        assert kernel.lib.is_kho_boot(), "an empty leaf is in order"
    ram.bytes[leaf] = 1
    cold(library, ram, handed).close()


def test_no_room_in_scratch_for_the_lists(old: Kernel, library: Path, ram: Ram) -> None:
    """A million pages, every other one: their lists take more than scratch has."""
    handed = old.handover()
    assert ram.size == RAM_SIZE
    old.close()
    for pfn in range(0x400, 0x2000, 2):
        preserve_in_tree(ram, handed, pfn, 0)
    with update(library, ram, handed) as kernel:
        assert kernel.lib.is_kho_boot(), "3584 runs do fit"
        regions = [r for r in kernel.regions(reserved=True) if r[2] & NOINIT]
        assert len(regions) >= 3000


def test_a_blob_that_nobody_preserved_stays_readable(old: Kernel, library: Path, ram: Ram) -> None:
    """Its memory, and the FDT's, is not given to anybody else."""
    blob = old.lib.host_alloc(0)
    assert old.lib.kho_add_subtree(b"mine", DIRECT_MAP + blob, 100) == 0
    handed = old.handover()
    old.lib.host_unpreserve_folio(handed[0])
    old.close()
    with update(library, ram, handed) as kernel:
        reserved = [(start, end) for start, end, _ in kernel.regions(reserved=True)]
        for phys in (blob, handed[0]):
            assert any(start <= phys < end for start, end in reserved), hex(phys)
            assert kernel.lib.host_restore_folio(phys) == -1
        assert retrieve(kernel, b"mine") == (0, blob, 100)


def survives(run: Callable[[], None], what: str) -> None:
    """Runs in a child: a kernel that goes astray takes the process with it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"{what}: status {status:#x}"


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_is_survived(library: Path, seed: int) -> None:
    """Words of FDT, tree, scratch list and chunks change; the next kernel boots and tries to use all."""
    rng = random.Random(seed)
    with Ram(RAM_SIZE) as ram:
        with Kernel(library, ram, OLD_PAGES) as kernel:
            kernel.boot(reserve_mem=["64K:4096:region"])
            folios = [kernel.lib.host_alloc(order) for order in range(8)]
            for folio in folios:
                assert kernel.lib.host_preserve_folio(folio) == 0
            _, descriptor, _ = preserve_vmalloc(kernel, kernel.lib.vmalloc(520 * PAGE))
            root = kernel.lib.host_tree_root()
            handed = kernel.handover()
        nodes = [tree_node(ram, root, depth) for depth in range(6)]
        blob = Fdt.parse(ram.read(handed[0], PAGE).tobytes()).root.child("memblock")
        assert blob is not None
        targets = [
            (handed[0], 400),
            (blob.u64("preserved-data"), 210),
            (handed[2], 48),
            (descriptor.first, PAGE),
        ]
        targets += [(node, PAGE) for node in nodes] * 2
        good = ram.bytes.copy()

        def attempt() -> None:
            phys, size = rng.choice(targets)
            for _ in range(rng.choice([1, 1, 2, 8])):
                words = ram.words(phys)
                used = words[: size // 8].nonzero()[0]
                index = (
                    int(rng.choice(used.tolist()))
                    if len(used) and rng.random() < 0.7
                    else rng.randrange(size // 8)
                )
                words[index] = rng.choice([
                    0, 1, 2**64 - 1, rng.getrandbits(64), rng.randrange(RAM_SIZE) & -PAGE, rng.choice(nodes),
                    handed[0], handed[2] & -PAGE, int(words[index]) ^ (1 << rng.randrange(64)), RAM_SIZE,
                ])  # fmt: skip
            with Kernel(library, ram, NEW_PAGES) as kernel:
                kernel.boot(populate=handed, reserve_mem=["64K:4096:region"])
                for folio in folios:
                    kernel.lib.host_restore_folio(folio)
                kernel.lib.kho_restore_vmalloc(descriptor.pack())
            changed = np.flatnonzero(ram.bytes != good)
            ram.bytes[changed] = good[changed]

        def run() -> None:
            for _ in range(25):
                attempt()

        survives(run, f"seed {seed}")
