"""Handing over from one kernel to the next: the kernel's KHO code on both sides, `kho` as the witness between them.

A plain model says what was preserved; the tree in memory has to say the same to the host's reader, and the next kernel
has to adopt and give back exactly that. Then everything that can be wrong with a handover.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import build
from kho import Handover
from kho.abi import RADIX, RESTORE_MAGIC, VMALLOC, VMALLOC_CHUNK_SLOTS
from kho.fdt import Fdt, Node
from kho.radix import decompose, read_tree, write_tree
from kho.findings import Findings
from kho.memory import Reader
from kho.setup_data import ScratchArea
from kho.vmalloc import Descriptor, read_area
from tests.guest.kho_host import DIRECT_MAP, HOSTED, MIB, PAGE, SCRATCH_ALIGN, Kernel, Ram, error_of

EINVAL, ENOENT, ENOMEM, EEXIST, E2BIG, EBUSY, ENOSPC, EOPNOTSUPP = 22, 2, 12, 17, 7, 16, 28, 95
NOINIT, KERN, SCRATCH = 0x10, 0x20, 0x40
RAM_SIZE = 64 * MIB
OLD_PAGES = (2 * MIB, 40 * MIB)
NEW_PAGES = (40 * MIB, 50 * MIB)

Populate = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def library() -> Path:
    path = build.build(build.project_root(), HOSTED)
    assert path is not None
    return path


@pytest.fixture
def ram() -> Iterator[Ram]:
    with Ram(RAM_SIZE) as memory:
        yield memory


@pytest.fixture
def old(library: Path, ram: Ram) -> Iterator[Kernel]:
    """A kernel after a cold boot."""
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot()
        yield kernel


def decode(ram: Ram, handed: Populate) -> Handover:
    areas = ram.words(handed[2], handed[3] // 8).reshape(-1, 2).tolist()
    return Handover.read(ram, handed[0], [ScratchArea(int(a), int(s)) for a, s in areas], search=False)


def blocks_of(ram: Ram, handed: Populate) -> set[tuple[int, int]]:
    tree = decode(ram, handed).tree
    return set(zip(tree.phys.tolist(), tree.order.tolist(), strict=True))


def update(
    library: Path, ram: Ram, handed: Populate, reserve_mem: list[str] | None = None, kho: str = "on"
) -> Kernel:
    """The next kernel, booted with what was handed over."""
    kernel = Kernel(library, ram, NEW_PAGES)
    kernel.boot(kho=kho, populate=handed, reserve_mem=reserve_mem or [])
    return kernel


# ---- the tree ------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data())
def test_the_tree_says_what_was_preserved(library: Path, data: st.DataObject) -> None:
    """Folios and ranges come and go; after each step the host reads the model's blocks."""
    with Ram(RAM_SIZE) as ram, Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot()
        handed = kernel.handover()
        model = blocks_of(ram, handed)
        held: list[tuple[str, int, int]] = []
        for _ in range(data.draw(st.integers(1, 10))):
            action = data.draw(st.sampled_from(["folio", "pages", "drop"]))
            if action == "folio":
                order = data.draw(st.integers(0, 6))
                phys = kernel.lib.host_alloc(order)
                assert kernel.lib.host_preserve_folio(phys) == 0
                model.add((phys, order))
                held.append((action, phys, order))
            elif action == "pages":
                order = data.draw(st.integers(0, 6))
                first = data.draw(st.integers(0, (1 << order) - 1))
                count = data.draw(st.integers(1, (1 << order) - first))
                phys = kernel.lib.host_alloc_pages(order) + first * PAGE
                assert kernel.lib.host_preserve_pages(phys, count) == 0
                model |= set(decompose(phys, count))
                held.append((action, phys, count))
            elif held:
                kind, phys, number = held.pop(data.draw(st.integers(0, len(held) - 1)))
                if kind == "folio":
                    kernel.lib.host_unpreserve_folio(phys)
                    model.discard((phys, number))
                else:
                    kernel.lib.host_unpreserve_pages(phys, number)
                    model -= set(decompose(phys, number))
            assert blocks_of(ram, handed) == model
        assert not list(decode(ram, handed).findings.of("INV-8"))
        assert kernel.warnings == 0, kernel.log


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 30)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_any_blocks_are_where_the_host_puts_them(
    library: Path, wanted: list[tuple[int, int]], rng: random.Random
) -> None:
    """Keys of every order and far addresses: word for word the nodes that the host writes, by another way."""
    blocks = [((pfn >> order << order), order) for pfn, order in wanted]
    with Ram(RAM_SIZE) as ram, Kernel(library, ram, OLD_PAGES) as kernel, Ram(RAM_SIZE) as other:
        kernel.boot()
        root = kernel.lib.host_tree_root()
        for pfn, order in blocks:
            assert kernel.lib.host_radix_add(pfn, order) == 0
        pages = iter(range(2 * MIB, RAM_SIZE, PAGE))
        reference, _ = write_tree(
            other, lambda: next(pages), np.array([pfn * PAGE for pfn, _ in blocks], dtype=np.uint64),
            np.array([order for _, order in blocks], dtype=np.uint8),
        )  # fmt: skip
        # the metadata pages of the kernel itself
        own = {k for k in _keys(ram, root)} - {RADIX.key(pfn * PAGE, order) for pfn, order in blocks}
        assert _keys(ram, root) - own == _keys(other, reference)
        rng.shuffle(blocks)
        for pfn, order in blocks:
            kernel.lib.host_radix_del(pfn, order)
        assert _keys(ram, root) == own


def _keys(ram: Ram, node: int, level: int = RADIX.depth - 1, prefix: int = 0) -> set[int]:
    if not level:
        bits = np.flatnonzero(np.unpackbits(ram.read(node, PAGE), bitorder="little"))
        return {prefix << RADIX.leaf_bits | int(bit) for bit in bits}
    found: set[int] = set()
    for index, word in enumerate(ram.words(node).tolist()):
        if word:
            found |= _keys(ram, word, level - 1, prefix << RADIX.table_bits | index)
    return found


def test_adding_twice_is_silent_and_deleting_once_removes(old: Kernel, ram: Ram) -> None:
    handed = old.handover()
    before = blocks_of(ram, handed)
    phys = old.lib.host_alloc(3)
    assert old.lib.host_preserve_folio(phys) == 0
    assert old.lib.host_preserve_folio(phys) == 0
    old.lib.host_unpreserve_folio(phys)
    assert blocks_of(ram, handed) == before


def test_deleting_what_has_no_path_warns(old: Kernel) -> None:
    assert old.warnings == 0
    old.lib.host_radix_del(1 << 30, 20)
    assert old.warnings == 1, "a block whose nodes do not exist"
    phys = old.lib.host_alloc(0)
    old.lib.host_unpreserve_folio(phys)
    assert old.warnings == 1, "a bit that is not set is no reason to warn"


@pytest.mark.parametrize("n", range(5))
def test_adding_without_memory_leaves_the_tree_as_it_was(old: Kernel, ram: Ram, n: int) -> None:
    """A block of an order that the tree has nothing for needs five new pages."""
    root = old.lib.host_tree_root()
    before, pages = _keys(ram, root), old.outstanding
    nodes = ram.words(root).copy()
    old.lib.host_fail_after(n)
    assert old.lib.host_radix_add(1 << 20, 20) == -ENOMEM
    assert old.outstanding == pages, "pages of the tree leaked"
    assert (ram.words(root) == nodes).all()
    assert _keys(ram, root) == before
    old.lib.host_fail_after(-1)
    assert old.lib.host_radix_add(1 << 20, 20) == 0


def test_orders_beyond_the_keys_are_refused(old: Kernel) -> None:
    assert old.lib.host_radix_add(0, 53) == -EINVAL


# ---- errors of preserving ------------------------------------------------------------------------------------------


def test_preserving_in_scratch_is_refused(old: Kernel) -> None:
    (start, size), *_ = old.scratch()
    for phys, count in ((start, 1), (start + size - PAGE, 1), (start - PAGE, 2), (start - PAGE, size // PAGE + 2)):
        assert old.lib.host_preserve_pages(phys, count) == -EINVAL, hex(phys)
    assert old.warnings == 4
    assert old.lib.host_preserve_folio(start) == -EINVAL
    assert old.lib.host_preserve_pages(start - PAGE, 1) == 0
    assert old.lib.host_preserve_pages(start + size, 1) == 0


def test_alloc_preserve_errors(old: Kernel) -> None:
    alloc = old.lib.kho_alloc_preserve
    assert error_of(alloc(0)) == -EINVAL
    assert error_of(alloc((4 << 20) + 1)) == -E2BIG
    assert error_of(alloc(2**64 - 1)) == -E2BIG
    old.lib.host_fail_after(0)
    assert error_of(alloc(1)) == -ENOMEM
    pages = old.outstanding
    old.lib.host_fail_after(1)
    assert error_of(alloc(1 << 20)) == -ENOMEM, "the folio is there, a page of the tree is not"
    assert old.outstanding == pages
    old.lib.host_fail_after(-1)


@pytest.mark.parametrize(("size", "order"), [(1, 0), (4096, 0), (4097, 1), (4 << 20, 10)])
def test_alloc_preserve_gives_a_zeroed_folio(old: Kernel, ram: Ram, size: int, order: int) -> None:
    handed = old.handover()
    before, pages = blocks_of(ram, handed), old.outstanding
    pointer = old.lib.kho_alloc_preserve(size)
    phys = old.phys(pointer)
    assert blocks_of(ram, handed) - before == {(phys, order)}
    assert not ram.read(phys, PAGE << order).any()
    nodes = old.outstanding - pages - 1
    old.lib.kho_unpreserve_free(pointer)
    assert blocks_of(ram, handed) == before
    assert old.outstanding == pages + nodes
    old.lib.kho_unpreserve_free(0)


def test_a_range_that_fails_in_the_middle_is_not_preserved(old: Kernel, ram: Ram) -> None:
    handed = old.handover()
    before = blocks_of(ram, handed)
    phys = old.lib.host_alloc_pages(6) + PAGE
    for n in range(40):
        old.lib.host_fail_after(n)
        result = old.lib.host_preserve_pages(phys, 62)
        old.lib.host_fail_after(-1)
        if result == 0:
            break
        assert result == -ENOMEM
        assert blocks_of(ram, handed) == before, f"failed at allocation {n}"
    assert n > 5
    assert blocks_of(ram, handed) - before == set(decompose(phys, 62))


def test_nothing_is_preserved_while_kho_is_off(library: Path, ram: Ram) -> None:
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot(kho="off")
        phys = kernel.lib.host_alloc(0)
        assert kernel.lib.host_preserve_folio(phys) == -EOPNOTSUPP
        assert kernel.lib.host_preserve_pages(phys, 1) == -EOPNOTSUPP
        assert error_of(kernel.lib.kho_alloc_preserve(1)) == -EOPNOTSUPP
        assert kernel.lib.kho_add_subtree(b"x", DIRECT_MAP + phys, 1) == -EOPNOTSUPP
        out = (ctypes.c_uint64 * 4)()
        assert kernel.lib.host_fill_kimage(out) == 0
        assert list(out) == [0, 0, 0, 0]


# ---- sub-trees -----------------------------------------------------------------------------------------------------


def root_children(ram: Ram, fdt: int) -> dict[str, tuple[int, int]]:
    root = Fdt.parse(ram.read(fdt, PAGE).tobytes()).root
    return {n.name: (n.u64("preserved-data"), n.u64("blob-size")) for n in root.children}


def test_subtrees_come_and_go(old: Kernel, ram: Ram) -> None:
    fdt = old.lib.host_root_fdt()
    assert list(root_children(ram, fdt)) == ["kexec-metadata"]
    blob = old.lib.kho_alloc_preserve(100)
    assert old.lib.kho_add_subtree(b"one", blob, 100) == 0
    assert old.lib.kho_add_subtree(b"one", blob + PAGE, 5) == -EEXIST
    assert old.lib.kho_add_subtree(b"two", blob + 64, 5) == 0
    assert list(root_children(ram, fdt)) == ["two", "one", "kexec-metadata"]
    assert root_children(ram, fdt)["one"] == (old.phys(blob), 100)
    old.lib.kho_remove_subtree(blob + 8)
    assert len(root_children(ram, fdt)) == 3, "nobody has this address"
    old.lib.kho_remove_subtree(blob)
    assert list(root_children(ram, fdt)) == ["two", "kexec-metadata"]


def test_a_full_fdt_refuses_and_stays_as_it_was(old: Kernel, ram: Ram) -> None:
    fdt = old.lib.host_root_fdt()
    blob = old.lib.kho_alloc_preserve(1)
    count = 0
    while (result := old.lib.kho_add_subtree(b"node%04d" % count, blob, count)) == 0:
        count += 1
        before = ram.read(fdt, PAGE).copy()
    assert result == -ENOMEM
    assert (ram.read(fdt, PAGE) == before).all(), "a node that did not fit changed the FDT"
    assert count == (PAGE - 233) // (48 + 12)
    assert old.lib.kho_add_subtree(b"node0000", blob, 1) == -EEXIST
    old.lib.kho_remove_subtree(blob)
    assert old.lib.kho_add_subtree(b"again", blob, 1) == 0


# ---- restoring -----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 255)), min_size=1, max_size=12))
def test_the_next_kernel_adopts_and_restores_it_all(
    library: Path, wanted: list[tuple[bool, int, int]]
) -> None:
    with Ram(RAM_SIZE) as ram:
        with Kernel(library, ram, OLD_PAGES) as kernel:
            kernel.boot()
            held = []
            for is_folio, order, fill in wanted:
                if is_folio:
                    phys, pages = kernel.lib.host_alloc(order), 1 << order
                    assert kernel.lib.host_preserve_folio(phys) == 0
                else:
                    phys, pages = kernel.lib.host_alloc_pages(order + 1) + PAGE, (1 << order + 1) - 1
                    assert kernel.lib.host_preserve_pages(phys, pages) == 0
                ram.bytes[phys : phys + pages * PAGE] = fill
                held.append((is_folio, phys, pages, fill))
            handed = kernel.handover()
        model = blocks_of(ram, handed)
        with update(library, ram, handed) as kernel:
            _check_adopted(kernel, model)
            for is_folio, phys, pages, fill in held:
                if is_folio:
                    assert kernel.lib.host_restore_folio(phys) == pages.bit_length() - 1
                    assert kernel.page(phys)[1:3] == (1, 0)
                    assert kernel.lib.host_restore_folio(phys) == -1, "restored twice"
                else:
                    assert kernel.lib.kho_restore_pages(phys, pages) != 0
                    for page in range(phys, phys + pages * PAGE, PAGE):
                        assert kernel.page(page) == (0, 1, 0, 0)
                    assert kernel.lib.kho_restore_pages(phys, pages) == 0, "restored twice"
                assert (ram.read(phys, pages * PAGE) == fill).all()
            assert kernel.lib.kho_restored_pages() == sum(pages for _, _, pages, _ in held)
            assert kernel.lib.host_managed() == kernel.lib.kho_restored_pages()


def _check_adopted(kernel: Kernel, model: set[tuple[int, int]]) -> None:
    """Every block is reserved without being initialised, and stamped; no other page of RAM is stamped."""
    noinit = [(start, end) for start, end, flags in kernel.regions(reserved=True) if flags & NOINIT]
    covered = 0
    for start, end in noinit:
        covered += end - start
    assert covered == sum(PAGE << order for _, order in model)
    for phys, order in model:
        assert any(start <= phys and phys + (PAGE << order) <= end for start, end in noinit)
    private = kernel.private_words()
    stamped = {(int(pfn) * PAGE, int(private[pfn])) for pfn in np.flatnonzero(private)}
    assert stamped == {(phys, RESTORE_MAGIC << 32 | order) for phys, order in model}


def test_adoption_says_nothing_when_all_is_well(old: Kernel, library: Path, ram: Ram) -> None:
    handed = old.handover()
    old.close()
    with update(library, ram, handed) as kernel:
        assert kernel.log.splitlines() == [
            "KHO: found kexec handover data.",
            "KHO: scratch areas: lowmem: 8MiB global: 0MiB pernode: 0MiB",
            "KHO: exec from: 0.0.0-hosted (count 1)",
        ]
        assert kernel.lib.is_kho_boot()


def test_what_was_not_preserved_cannot_be_restored(old: Kernel, library: Path, ram: Ram) -> None:
    phys = old.lib.host_alloc(2)
    assert old.lib.host_preserve_folio(phys) == 0
    handed = old.handover()
    old.close()
    with update(library, ram, handed) as kernel:
        for wrong in (phys + PAGE, phys + 8, phys + 4 * PAGE, 0, RAM_SIZE, 1 << 62, 0xA0000):
            assert kernel.lib.host_restore_folio(wrong) == -1, hex(wrong)
        assert kernel.lib.kho_restore_pages(phys, 3) == 0, "the block goes beyond the range"
        assert kernel.lib.kho_restore_pages(phys, 5) == 0, "the range goes beyond the block"
        assert kernel.lib.host_restore_folio(phys) == -1, "the last one restored what it could"


def test_a_block_above_the_largest_folio_is_restored_as_pages(old: Kernel, library: Path, ram: Ram) -> None:
    phys = 16 * MIB
    assert old.lib.host_preserve_pages(phys, 4096) == 0
    handed = old.handover()
    assert (phys, 12) in blocks_of(ram, handed)
    old.close()
    with update(library, ram, handed) as kernel:
        assert kernel.lib.host_restore_folio(phys) == -1
        assert kernel.lib.kho_restore_pages(phys, 4096) != 0
        assert kernel.page(phys + 4095 * PAGE) == (0, 1, 0, 0)


def test_restoring_goes_by_the_stored_orders(old: Kernel, library: Path, ram: Ram) -> None:
    """A range that was cut in another way, as at the border of two memory nodes: four blocks of order 0, not one of 2."""
    phys = old.lib.host_alloc_pages(2)
    for page in range(4):
        assert old.lib.host_preserve_pages(phys + page * PAGE, 1) == 0
    handed = old.handover()
    old.close()
    with update(library, ram, handed) as kernel:
        assert kernel.lib.kho_restore_pages(phys, 4) != 0
        assert [kernel.page(phys + page * PAGE)[1] for page in range(4)] == [1, 1, 1, 1]


def test_kho_off_in_the_next_kernel_still_adopts(old: Kernel, library: Path, ram: Ram) -> None:
    phys = old.lib.host_alloc(4)
    assert old.lib.host_preserve_folio(phys) == 0
    handed = old.handover()
    old.close()
    with update(library, ram, handed, kho="off") as kernel:
        assert kernel.lib.is_kho_boot() and not kernel.lib.kho_is_enabled()
        assert kernel.lib.host_restore_folio(phys) == 4
        assert kernel.lib.host_root_fdt() == 0
        phys_out, size = ctypes.c_uint64(), ctypes.c_uint64()
        assert kernel.lib.kho_retrieve_subtree(
            b"kexec-metadata", ctypes.byref(phys_out), ctypes.byref(size)
        ) == 0
        assert size.value == 73


def test_a_chain_keeps_scratch_and_counts(library: Path, ram: Ram) -> None:
    handed: Populate | None = None
    first = None
    for count in range(1, 6):
        pages = (4 * MIB * count, 4 * MIB * (count + 1))
        with Kernel(library, ram, pages) as kernel:
            kernel.boot(populate=handed)
            if first is None:
                first = kernel.scratch()
            assert kernel.scratch() == first
            handed = kernel.handover()
            metadata = decode(ram, handed).metadata
            assert metadata is not None and metadata.kexec_count == count


# ---- retrieving sub-trees ------------------------------------------------------------------------------------------


def retrieve(kernel: Kernel, name: bytes) -> tuple[int, int, int]:
    phys, size = ctypes.c_uint64(), ctypes.c_uint64()
    result = kernel.lib.kho_retrieve_subtree(name, ctypes.byref(phys), ctypes.byref(size))
    return result, phys.value, size.value


def test_a_subtree_can_be_retrieved_again_and_again(old: Kernel, library: Path, ram: Ram) -> None:
    blob = old.lib.kho_alloc_preserve(5000)
    assert old.lib.kho_add_subtree(b"mine", blob, 5000) == 0
    handed = old.handover()
    phys = old.phys(blob)
    old.close()
    with update(library, ram, handed) as kernel:
        assert retrieve(kernel, b"mine") == (0, phys, 5000)
        assert retrieve(kernel, b"mine") == (0, phys, 5000)
        assert retrieve(kernel, b"other")[0] == -ENOENT
        assert kernel.lib.kho_retrieve_subtree(b"mine", 0, 0) == -EINVAL
        out = ctypes.c_uint64()
        assert kernel.lib.kho_retrieve_subtree(b"mine", ctypes.byref(out), 0) == 0
        assert out.value == phys


def test_a_cold_kernel_has_no_subtrees(old: Kernel) -> None:
    assert retrieve(old, b"kexec-metadata")[0] == -ENOENT
    assert not old.lib.is_kho_boot()


@pytest.mark.parametrize(
    "node",
    [
        {"blob-size": bytes(8)},
        {"preserved-data": bytes(7), "blob-size": bytes(8)},
        {"preserved-data": (2 * MIB).to_bytes(8, "little")},
        {"preserved-data": (2 * MIB).to_bytes(8, "little"), "blob-size": bytes(4)},
        {"preserved-data": (2 * MIB).to_bytes(8, "little"), "blob-size": bytes(8)},
        {"preserved-data": (1 << 40).to_bytes(8, "little"), "blob-size": b"\x01" + bytes(7)},
        {"preserved-data": (RAM_SIZE - PAGE).to_bytes(8, "little"), "blob-size": (8192).to_bytes(8, "little")},
        {"preserved-data": b"\xff" * 8, "blob-size": b"\xff" * 8},
        {"preserved-data": (0x9F000).to_bytes(8, "little"), "blob-size": b"\x01" + bytes(7)},
    ],
    ids=["no address", "short address", "no size", "short size", "empty", "above RAM", "over the end", "wraps", "hole"],
)
def test_a_broken_subtree_is_refused(
    old: Kernel, library: Path, ram: Ram, node: dict[str, bytes]
) -> None:
    handed = old.handover()
    old.close()
    fdt = Fdt.parse(ram.read(handed[0], PAGE).tobytes())
    fdt.root.children.append(Node("broken", node))
    ram.write(handed[0], fdt.write(PAGE))
    with update(library, ram, handed) as kernel:
        assert retrieve(kernel, b"broken")[0] == -EINVAL
        assert retrieve(kernel, b"kexec-metadata")[0] == 0


# ---- kexec-metadata ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blob", "size", "line"),
    [
        ((2).to_bytes(4, "little") + bytes(69), 73, "KHO: kexec-metadata version 2 not supported (expected 1)"),
        ((1).to_bytes(4, "little") + bytes(69), 8, "KHO: kexec-metadata blob too small for v1 (8 < 73)"),
        ((1).to_bytes(4, "little") + bytes(69), 3, "KHO: kexec-metadata blob too small (3)"),
        ((1).to_bytes(4, "little") + b"x" * 65 + b"\x07\0\0\0", 73, f"KHO: exec from: {'x' * 64} (count 7)"),
        ((1).to_bytes(4, "little") + b"7.2.13".ljust(65, b"\0") + b"\x07\0\0\0", 80, "KHO: exec from: 7.2.13 (count 7)"),
    ],
    ids=["version", "short", "tiny", "endless name", "longer than needed"],
)
def test_foreign_metadata(
    old: Kernel, library: Path, ram: Ram, blob: bytes, size: int, line: str
) -> None:
    handed = old.handover()
    old.close()
    fdt = Fdt.parse(ram.read(handed[0], PAGE).tobytes())
    node = fdt.root.child("kexec-metadata")
    assert node is not None
    ram.write(node.u64("preserved-data"), blob)
    node.properties["blob-size"] = size.to_bytes(8, "little")
    ram.write(handed[0], fdt.write(PAGE))
    with update(library, ram, handed) as kernel:
        assert line in kernel.log.splitlines()
        count = decode(ram, kernel.handover()).metadata
        assert count is not None and count.kexec_count == (8 if "count 7" in line else 1)


# ---- vmalloc -------------------------------------------------------------------------------------------------------


def preserve_vmalloc(kernel: Kernel, area: int) -> tuple[int, Descriptor, ctypes.Array[ctypes.c_char]]:
    out = ctypes.create_string_buffer(16)
    result = kernel.lib.kho_preserve_vmalloc(area, out)
    return result, Descriptor.unpack(out.raw), out


@pytest.mark.parametrize("pages", [1, 510, 511, 512, 1021, 1022, 1023])
def test_a_vmalloc_area_crosses(old: Kernel, library: Path, ram: Ram, pages: int) -> None:
    area = old.lib.vmalloc(pages * PAGE)
    content = np.random.default_rng(pages).integers(0, 256, pages * PAGE, dtype=np.uint8).tobytes()
    ctypes.memmove(area, content, len(content))
    result, descriptor, _ = preserve_vmalloc(old, area)
    assert result == 0
    assert descriptor.total_pages == pages and descriptor.flags == 1 and descriptor.order == 0
    handed = old.handover()
    seen = read_area(Reader(ram), descriptor, pages)
    assert not seen.problems
    assert len(seen.chunks) == pages // VMALLOC_CHUNK_SLOTS + 1, "a chunk follows as soon as one is full"
    assert seen.read(Reader(ram), len(content)).tobytes() == content
    preserved = blocks_of(ram, handed)
    assert {(chunk, 0) for chunk in seen.chunks} <= preserved
    assert {(int(block), 0) for block in seen.blocks} <= preserved
    old.close()
    with update(library, ram, handed) as kernel:
        before = kernel.outstanding
        copy = kernel.lib.kho_restore_vmalloc(descriptor.pack())
        assert copy, kernel.log
        assert ctypes.string_at(copy, len(content)) == content
        assert kernel.lib.kho_restore_vmalloc(descriptor.pack()) == 0, "restored twice"
        assert kernel.lib.kho_restored_pages() == pages + len(seen.chunks)
        for chunk in seen.chunks:
            assert kernel.page(chunk)[1] == 0, "a chunk page was not freed"
        kernel.lib.vfree(copy)
        assert before - kernel.outstanding == pages + len(seen.chunks), "pages that were handed over are not freed"


def test_an_area_in_large_blocks_crosses(old: Kernel, library: Path, ram: Ram) -> None:
    area = old.lib.host_vmalloc_huge(3 * 8 * PAGE, 3)
    ctypes.memset(area, 0x5A, 3 * 8 * PAGE)
    result, descriptor, _ = preserve_vmalloc(old, area)
    assert result == 0
    assert (descriptor.total_pages, descriptor.flags, descriptor.order) == (24, 3, 3)
    handed = old.handover()
    seen = read_area(Reader(ram), descriptor, 24)
    assert {(int(block), 3) for block in seen.blocks} <= blocks_of(ram, handed)
    old.close()
    with update(library, ram, handed) as kernel:
        copy = kernel.lib.kho_restore_vmalloc(descriptor.pack())
        assert copy % (8 * PAGE) == 0 and ctypes.string_at(copy, 24 * PAGE) == b"\x5a" * (24 * PAGE)


def test_unpreserving_an_area_takes_all_of_it_back(old: Kernel, ram: Ram) -> None:
    handed = old.handover()
    area = old.lib.vmalloc(600 * PAGE)
    before, pages = blocks_of(ram, handed), old.outstanding
    _, _, out = preserve_vmalloc(old, area)
    assert len(blocks_of(ram, handed)) == len(before) + 602
    old.lib.kho_unpreserve_vmalloc(out)
    assert blocks_of(ram, handed) == before
    assert old.outstanding == pages, "chunk pages leaked"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_preserving_an_area_without_memory(old: Kernel, ram: Ram, n: int) -> None:
    handed = old.handover()
    area = old.lib.vmalloc(2000 * PAGE)
    before, pages = blocks_of(ram, handed), old.outstanding
    old.lib.host_fail_after(n)
    assert preserve_vmalloc(old, area)[0] == -ENOMEM
    old.lib.host_fail_after(-1)
    assert blocks_of(ram, handed) == before
    assert old.outstanding == pages


def test_only_vmalloc_areas_are_preserved_as_such(old: Kernel) -> None:
    assert preserve_vmalloc(old, DIRECT_MAP + 3 * MIB)[0] == -EINVAL
    assert preserve_vmalloc(old, old.lib.host_vmap(PAGE))[0] == -EOPNOTSUPP


Damage = Callable[[Ram, Descriptor, list[int]], Descriptor]


def _chunk_word(index: int, value: Callable[[Descriptor, list[int]], int]) -> Damage:
    def change(ram: Ram, d: Descriptor, chunks: list[int]) -> Descriptor:
        ram.words(chunks[0])[index] = value(d, chunks)
        return d

    return change


def _field(**changes: int) -> Damage:
    def change(ram: Ram, d: Descriptor, chunks: list[int]) -> Descriptor:
        return Descriptor(**{**d.__dict__, **changes})

    return change


@pytest.mark.parametrize(
    "damage",
    [
        _field(first=0), _field(first=8), _field(first=1 << 50), _field(first=6 * MIB), _field(total_pages=0),
        _field(total_pages=599), _field(total_pages=601), _field(total_pages=0xFFFFFFFF), _field(order=1),
        _field(order=0xFFFF), _field(order=33),
        _chunk_word(0, lambda d, c: c[0]), _chunk_word(0, lambda d, c: c[1] + 8), _chunk_word(0, lambda d, c: 0),
        _chunk_word(1, lambda d, c: 0), _chunk_word(1, lambda d, c: 8), _chunk_word(300, lambda d, c: 1 << 60),
        _chunk_word(511, lambda d, c: 30 * MIB),
    ],
)  # fmt: skip
def test_a_damaged_area_is_refused_as_a_whole(old: Kernel, library: Path, ram: Ram, damage: Damage) -> None:
    area = old.lib.vmalloc(600 * PAGE)
    _, descriptor, _ = preserve_vmalloc(old, area)
    handed = old.handover()
    seen = read_area(Reader(ram), descriptor, 600)
    model = blocks_of(ram, handed)
    old.close()
    descriptor = damage(ram, descriptor, seen.chunks)
    with update(library, ram, handed) as kernel:
        assert kernel.lib.kho_restore_vmalloc(VMALLOC.pack(*descriptor.__dict__.values())) == 0
        assert kernel.lib.kho_restored_pages() == 0
        _check_adopted(kernel, model)


def test_a_block_listed_twice_is_not_mapped(old: Kernel, library: Path, ram: Ram) -> None:
    area = old.lib.vmalloc(5 * PAGE)
    _, descriptor, _ = preserve_vmalloc(old, area)
    handed = old.handover()
    old.close()
    words = ram.words(descriptor.first)
    words[3] = words[2]
    with update(library, ram, handed) as kernel:
        assert kernel.lib.kho_restore_vmalloc(descriptor.pack()) == 0


# ---- a bad handover ------------------------------------------------------------------------------------------------


def cold(library: Path, ram: Ram, handed: Populate, pages: tuple[int, int] = NEW_PAGES) -> Kernel:
    kernel = update(library, ram, handed)
    assert not kernel.lib.is_kho_boot(), kernel.log
    assert retrieve(kernel, b"kexec-metadata")[0] == -ENOENT
    return kernel


def change_root(ram: Ram, fdt: int, change: Callable[[Node], None]) -> None:
    tree = Fdt.parse(ram.read(fdt, PAGE).tobytes())
    change(tree.root)
    ram.write(fdt, tree.write(PAGE).ljust(PAGE, b"\0"))


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

    for address, bytes_ in ((0, 48), (array, 0), (array, 15), (array, 1 << 20), (array + 1, 48), (RAM_SIZE, 48)):
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


def tree_node(ram: Ram, root: int, depth: int) -> int:
    for _ in range(depth):
        root = int(ram.words(root)[ram.words(root).nonzero()[0][0]])
    return root


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
        change_root(ram, handed[0], lambda r: r.properties.update({"preserved-memory-map": bad.to_bytes(8, "little")}))
    else:
        table = ram.words(tree_node(ram, root, level - 1))
        table[table.nonzero()[0][0]] = bad
    with cold(library, ram, handed) as kernel:
        assert f"KHO: page {bad:#x} of the tree, level {5 - level}, is not a page of RAM outside scratch" in kernel.log
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
        (RAM_SIZE // PAGE, 0), (RAM_SIZE // PAGE - 1, 0), (0, 14), (0, 15), (0x9F, 0), (0xA0, 5), (1 << 40, 0),
        (1 << 51, 0), (1 << 40, 30), (0, 40), (0, 52), (1 << 51, 51),
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
        assert f"KHO: preserved memory {start:#x}, 1 blocks of order 0, is not RAM outside scratch" in kernel.log


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


# ---- campaigns: nothing that a handover says may make the kernel touch what is not its own --------------------------


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
    """Words of the FDT, the tree, scratch list and vmalloc chunks change; the next kernel boots and tries to use all."""
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
        targets = [(handed[0], 400), (blob.u64("preserved-data"), 210), (handed[2], 48), (descriptor.first, PAGE)]
        targets += [(node, PAGE) for node in nodes] * 2
        good = ram.bytes.copy()

        def attempt() -> None:
            phys, size = rng.choice(targets)
            for _ in range(rng.choice([1, 1, 2, 8])):
                words = ram.words(phys)
                used = words[: size // 8].nonzero()[0]
                index = int(rng.choice(used.tolist())) if len(used) and rng.random() < 0.7 else rng.randrange(size // 8)
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


# ---- scratch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "%", "x%", "-1%", "12345678901%", "99999999999", "1,2", "1,2,3,4", "0,0,0", "16M",
                                   "1M,2M,", ",,", "1M 2M,3M", "bad", "8M,0,0 ", "3000000000%"])  # fmt: skip
def test_malformed_kho_scratch(library: Path, ram: Ram, value: str) -> None:
    with Kernel(library, ram) as kernel:
        assert kernel.param("kho_scratch", value) == -EINVAL
        assert kernel.log == ""


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("48M,0,0", "KHO: scratch areas: lowmem: 48MiB global: 0MiB pernode: 0MiB"),
        ("0,1G,0x100000", "KHO: scratch areas: lowmem: 0MiB global: 1024MiB pernode: 1MiB"),
        ("200%", "KHO: scratch scale is 200%"),
        ("0%", "KHO: scratch scale is 0%"),
    ],
)
def test_kho_scratch_is_confirmed(library: Path, ram: Ram, value: str, line: str) -> None:
    with Kernel(library, ram) as kernel:
        assert kernel.param("kho_scratch", value) == 0
        assert kernel.log == line + "\n"


@pytest.mark.parametrize(("value", "on"), [("on", True), ("y", True), ("1", True), ("Enable", True), ("T", True),
                                           ("off", False), ("n", False), ("0", False), ("Disable", False)])  # fmt: skip
def test_spellings_of_kho(library: Path, ram: Ram, value: str, on: bool) -> None:
    with Kernel(library, ram) as kernel:
        assert kernel.param("kho", value) == 0
        assert bool(kernel.lib.kho_is_enabled()) == on


@pytest.mark.parametrize("value", ["", "oo", "x", "2"])
def test_other_spellings_of_kho_change_nothing(library: Path, ram: Ram, value: str) -> None:
    with Kernel(library, ram) as kernel:
        assert kernel.param("kho", "on") == 0
        assert kernel.param("kho", value) == -EINVAL
        assert kernel.lib.kho_is_enabled()


def boot_with(kernel: Kernel, scratch: str, kernel_size: int = 0) -> None:
    assert kernel.param("kho", "on") == 0
    if scratch:
        assert kernel.param("kho_scratch", scratch) == 0
    kernel.lib.host_memory_known()
    if kernel_size:
        assert kernel.lib.memblock_reserve_kern(2 * MIB, kernel_size) == 0
    kernel.lib.kho_memory_init()


def test_explicit_sizes_are_rounded_up(library: Path, ram: Ram) -> None:
    with Kernel(library, ram) as kernel:
        boot_with(kernel, "1,4M,5M")
        sizes = [size for _, size in kernel.scratch()]
        assert sizes == [4 * MIB, 4 * MIB, 8 * MIB]
        assert all(start % SCRATCH_ALIGN == 0 for start, _ in kernel.scratch())


def test_sizes_by_default_are_twice_what_the_boot_took(library: Path, ram: Ram) -> None:
    """low = 2r; nothing is above 4 GiB; the node's share counts the low area as well: 2 (r + low)."""
    with Kernel(library, ram) as kernel:
        boot_with(kernel, "", 3 * MIB)
        assert [size for _, size in kernel.scratch()] == [8 * MIB, 0, 24 * MIB]


def test_scratch_above_4_gib(library: Path) -> None:
    with Ram((4 << 30) + 64 * MIB, [(MIB, 64 * MIB), (4 << 30, (4 << 30) + 64 * MIB)]) as ram:
        with Kernel(library, ram) as kernel:
            assert kernel.param("kho", "on") == 0
            assert kernel.param("kho_scratch", "100%") == 0
            kernel.lib.host_memory_known()
            assert kernel.lib.memblock_reserve_kern(2 * MIB, 4 * MIB) == 0
            assert kernel.lib.memblock_reserve_kern((4 << 30) + 60 * MIB, 2 * MIB) == 0
            kernel.lib.kho_memory_init()
            (low, low_size), (other, other_size), (_, node_size) = kernel.scratch()
            assert low + low_size <= 4 << 30 and low_size == 4 * MIB
            assert other >= 4 << 30 and other_size == 4 * MIB  # 2 MiB, rounded up
            assert node_size == 16 * MIB  # 4 + 2 + 4 + 4, and the array


def test_zero_per_cent_leaves_kho_on_without_scratch(library: Path, ram: Ram) -> None:
    with Kernel(library, ram) as kernel:
        kernel.boot(scratch="0%")
        assert [size for _, size in kernel.scratch()] == [0, 0, 0]
        assert kernel.lib.kho_is_enabled()


@pytest.mark.parametrize(
    ("scratch", "line"),
    [
        ("1G,0,0", "KHO: Failed to reserve lowmem scratch buffer"),
        ("4M,1G,0", "KHO: Failed to reserve global scratch buffer"),
        ("4M,4M,1G", "KHO: Failed to reserve nid 0 scratch buffer"),
        ("4M,0,15E", "KHO: Failed to reserve nid 0 scratch buffer"),
        ("1000%", "KHO: Failed to reserve lowmem scratch buffer"),
    ],
)
def test_scratch_that_does_not_fit_turns_kho_off(library: Path, ram: Ram, scratch: str, line: str) -> None:
    with Kernel(library, ram) as kernel:
        before: list[tuple[int, int, int]] = []
        boot_with(kernel, scratch, 8 * MIB)
        assert kernel.log.splitlines()[1:] == [
            line, "KHO: Failed to reserve scratch area, disabling kexec handover",
        ]
        assert not kernel.lib.kho_is_enabled()
        before = kernel.regions(reserved=True)
        assert before == [(0, MIB, 0), (2 * MIB, 10 * MIB, KERN)], "an area was not given back"


def test_scratch_is_given_to_the_allocator_as_cma(old: Kernel) -> None:
    lines = [line for line in old.log.splitlines() if line.startswith("pageblock")]
    start = old.scratch()[0][0]
    assert lines == [f"pageblock {(start + i * 2 * MIB) // PAGE:#x} type 2" for i in range(4)]
    assert old.lib.host_managed() == 8 * MIB // PAGE


@pytest.mark.parametrize("n", range(8))
def test_kho_init_without_memory_gives_scratch_back(library: Path, ram: Ram, n: int) -> None:
    """Tree root, FDT and five nodes, metadata: whichever is missing, KHO is off and nothing is lost."""
    with Kernel(library, ram, OLD_PAGES) as kernel:
        boot_with(kernel, "8M,0,0")
        kernel.lib.host_memory_given()
        kernel.lib.host_fail_after(n)
        assert kernel.lib.host_initcall(b"kho_init") == -ENOMEM
        kernel.lib.host_fail_after(-1)
        assert not kernel.lib.kho_is_enabled()
        assert kernel.lib.host_managed() == 8 * MIB // PAGE
        assert "type 2" not in kernel.log and "type 1" in kernel.log
        assert kernel.outstanding <= 5, "only pages of the tree may stay"
        assert kernel.lib.host_root_fdt() == 0


# ---- reserve_mem ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", EINVAL), ("1M", EINVAL), ("1M:4096", EINVAL), ("1M:4096:", EINVAL), (":4096:x", EINVAL),
        ("0:4096:x", EINVAL), ("1M::x", EINVAL), ("1M:3000:x", EINVAL), ("1M:4096:   ", EINVAL),
        ("1M:4096:abcdefghijklmnop", EINVAL), ("1G:4096:x", ENOMEM), ("16E:4096:x", EINVAL),
    ],
)  # fmt: skip
def test_malformed_reserve_mem(library: Path, ram: Ram, value: str, error: int) -> None:
    with Kernel(library, ram) as kernel:
        kernel.lib.host_memory_known()
        assert kernel.param("reserve_mem", value) == -error
        assert kernel.lib.reserve_mem_get(0) == 0


def region(kernel: Kernel, n: int) -> tuple[int, int, str]:
    pointer = kernel.lib.reserve_mem_get(n)
    raw = ctypes.string_at(pointer, 32)
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:16], "little"), raw[16:].split(b"\0")[0].decode()


def test_eight_regions_and_no_more(library: Path, ram: Ram) -> None:
    with Kernel(library, ram) as kernel:
        kernel.lib.host_memory_known()
        assert kernel.param("reserve_mem", "100:0:abcdefghijklmno") == 0
        assert kernel.param("reserve_mem", "1M:4096:abcdefghijklmno") == -EBUSY
        for n in range(7):
            assert kernel.param("reserve_mem", f"8K:2M:r{n}") == 0
        assert kernel.param("reserve_mem", "8K:4096:more") == -EBUSY
        regions = [region(kernel, n) for n in range(8)]
        assert kernel.lib.reserve_mem_get(8) == 0
        assert regions[0][1:] == (100, "abcdefghijklmno")
        assert all(start % (2 * MIB) == 0 for start, _, _ in regions[1:])
        assert len({start // PAGE for start, _, _ in regions}) == 8


def test_a_region_survives_a_chain(library: Path, ram: Ram) -> None:
    handed: Populate | None = None
    places = set()
    for count in range(4):
        with Kernel(library, ram, (4 * MIB * (count + 1), 4 * MIB * (count + 2))) as kernel:
            kernel.boot(populate=handed, reserve_mem=["100K:8192:one", "3:64:two"])
            start, size, _ = region(kernel, 0)
            places.add((start, region(kernel, 1)[0]))
            if count == 0:
                ram.bytes[start : start + size] = 0x77
            assert (ram.read(start, size) == 0x77).all()
            handed = kernel.handover()
            decoded = decode(ram, handed)
            assert [(r.name, r.phys, r.size) for r in decoded.reserve_mem] == [
                ("one", start, 100 * 1024), ("two", region(kernel, 1)[0], 3),
            ]
            assert not list(decoded.findings)
    assert len(places) == 1


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("64K:4096:other", "memblock: FDT 'memblock' has no child 'other': -1"),
        ("128K:4096:region", "memblock: KHO reserve-mem 'region' has wrong size (0x10000 != 0x20000)"),
        ("64K:16M:region", "memblock: KHO reserve-mem 'region' has wrong alignment (0x1000000, "),
    ],
)
def test_a_region_that_cannot_be_revived_is_new_and_outside_scratch(
    library: Path, ram: Ram, value: str, line: str
) -> None:
    """Scratch would not do: the next kernel could not be given what is in it."""
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot(reserve_mem=["64K:4096:region"])
        handed = kernel.handover()
        (scratch, scratch_size), *_ = kernel.scratch()
    with update(library, ram, handed, [value]) as kernel:
        assert line in kernel.log
        start, size, _ = region(kernel, 0)
        assert start and (start + size <= scratch or start >= scratch + scratch_size)
        decoded = decode(ram, kernel.handover())
        assert decoded.reserve_mem[0].phys == start and not list(decoded.findings)


@pytest.mark.parametrize("what", ["root", "node", "start", "size", "scratch", "fdt", "blob"])
def test_a_damaged_memblock_blob(library: Path, ram: Ram, what: str) -> None:
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot(reserve_mem=["64K:4096:region"])
        handed = kernel.handover()
        scratch = kernel.scratch()[0][0]
        old_place = region(kernel, 0)[0]
    root = Fdt.parse(ram.read(handed[0], PAGE).tobytes())
    entry = root.root.child("memblock")
    assert entry is not None
    at = entry.u64("preserved-data")
    fdt = Fdt.parse(ram.read(at, PAGE).tobytes())
    node = fdt.root.children[0]
    expected = {
        "root": "memblock: FDT 'memblock' is incompatible with 'memblock-v1': 1",
        "node": "memblock: Node 'region' is incompatible with 'reserve-mem-v1': 1",
        "start": "memblock: Node 'region' has no start or size",
        "size": "memblock: Node 'region' has no start or size",
        "scratch": "memblock: KHO reserve-mem 'region' is not in RAM outside scratch",
        "fdt": "memblock: FDT 'memblock' is incompatible with 'memblock-v1': -9",
        "blob": "memblock: failed to retrieve FDT 'memblock' from KHO: -22",
    }[what]
    if what == "root":
        fdt.root.properties["compatible"] = b"memblock-v2\0"
    elif what == "node":
        node.properties["compatible"] = b"reserve-mem-v2\0"
    elif what in ("start", "size"):
        node.properties[what] = bytes(4)
    elif what == "scratch":
        node.properties["start"] = scratch.to_bytes(8, "little")
    ram.write(at, bytes(4) if what == "fdt" else fdt.write(PAGE))
    if what == "blob":
        entry.properties["preserved-data"] = (RAM_SIZE).to_bytes(8, "little")
        ram.write(handed[0], root.write(PAGE))
    with update(library, ram, handed, ["64K:4096:region"]) as kernel:
        assert expected in kernel.log.splitlines()
        assert region(kernel, 0)[0] not in (0, old_place), "the old place is still reserved by the tree"


def test_a_region_without_its_keys_is_not_given_away(library: Path, ram: Ram) -> None:
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot(reserve_mem=["64K:65536:region"])
        start = region(kernel, 0)[0]
        kernel.lib.host_unpreserve_pages(start, 16)
        handed = kernel.handover()
    with update(library, ram, handed, ["64K:65536:region"]) as kernel:
        assert region(kernel, 0)[0] == start
        assert any(a <= start and start + 65536 <= b for a, b, _ in kernel.regions(reserved=True))


def test_no_memory_outside_scratch_for_a_new_region(library: Path, ram: Ram) -> None:
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot()
        handed = kernel.handover()
    with update(library, ram, handed, ["1G:4096:huge", "4K:4096:small"]) as kernel:
        assert "memblock: no memory outside scratch for reserve_mem 'huge'" in kernel.log
        assert [r.name for r in decode(ram, kernel.handover()).reserve_mem] == ["small"]


# ---- who reads whom ------------------------------------------------------------------------------------------------


def test_the_tree_has_one_page_for_each_place(old: Kernel, ram: Ram) -> None:
    """What the host calls a node is what the kernel allocated for it."""
    handed = old.handover()
    findings = Findings()
    tree = read_tree(Reader(ram), old.lib.host_tree_root(), findings)
    assert not list(findings)
    assert len(tree.node_phys) == 6
    assert handed[0] in tree.phys.tolist()
