"""Preserving: the tree in memory says what the model of it says, and every error leaves it as it was."""

from __future__ import annotations

import ctypes
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kho.abi import RADIX
from kho.findings import Findings
from kho.memory import Reader
from kho.radix import decompose, read_tree, write_tree
from tests.guest.kho_cases import (
    E2BIG,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    OLD_PAGES,
    RAM_SIZE,
    blocks_of,
    decode,
    keys_of,
)
from tests.guest.kho_host import DIRECT_MAP, MIB, PAGE, Kernel, Ram, error_of


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
        own = keys_of(ram, root) - {RADIX.key(pfn * PAGE, order) for pfn, order in blocks}
        assert keys_of(ram, root) - own == keys_of(other, reference)
        rng.shuffle(blocks)
        for pfn, order in blocks:
            kernel.lib.host_radix_del(pfn, order)
        assert keys_of(ram, root) == own


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
    before, pages = keys_of(ram, root), old.outstanding
    nodes = ram.words(root).copy()
    old.lib.host_fail_after(n)
    assert old.lib.host_radix_add(1 << 20, 20) == -ENOMEM
    assert old.outstanding == pages, "pages of the tree leaked"
    assert (ram.words(root) == nodes).all()
    assert keys_of(ram, root) == before
    old.lib.host_fail_after(-1)
    assert old.lib.host_radix_add(1 << 20, 20) == 0


def test_orders_beyond_the_keys_are_refused(old: Kernel) -> None:
    assert old.lib.host_radix_add(0, 53) == -EINVAL


def test_preserving_in_scratch_is_refused(old: Kernel) -> None:
    (start, size), *_ = old.scratch()
    for phys, count in (
        (start, 1),
        (start + size - PAGE, 1),
        (start - PAGE, 2),
        (start - PAGE, size // PAGE + 2),
    ):
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


def test_the_tree_has_one_page_for_each_place(old: Kernel, ram: Ram) -> None:
    """What the host calls a node is what the kernel allocated for it."""
    handed = old.handover()
    findings = Findings()
    tree = read_tree(Reader(ram), old.lib.host_tree_root(), findings)
    assert not list(findings)
    assert len(tree.node_phys) == 6
    assert handed[0] in tree.phys.tolist()
