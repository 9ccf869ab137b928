"""vmalloc areas that cross to the next kernel, and damaged lists of their pages."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kho.abi import VMALLOC, VMALLOC_CHUNK_SLOTS
from kho.memory import Reader
from kho.vmalloc import Descriptor, read_area
from tests.guest.kho_cases import (
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    blocks_of,
    check_adopted,
    preserve_vmalloc,
    update,
)
from tests.guest.kho_host import DIRECT_MAP, MIB, PAGE, Kernel, Ram


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
        assert before - kernel.outstanding == pages + len(seen.chunks), (
            "pages that were handed over are not freed"
        )


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
        _chunk_word(0, lambda d, c: c[0]), _chunk_word(0, lambda d, c: c[1] + 8),
        _chunk_word(0, lambda d, c: 0),
        _chunk_word(1, lambda d, c: 0), _chunk_word(1, lambda d, c: 8),
        _chunk_word(300, lambda d, c: 1 << 60), _chunk_word(511, lambda d, c: 30 * MIB),
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
        check_adopted(kernel, model)


def test_a_block_listed_twice_is_not_mapped(old: Kernel, library: Path, ram: Ram) -> None:
    area = old.lib.vmalloc(5 * PAGE)
    _, descriptor, _ = preserve_vmalloc(old, area)
    handed = old.handover()
    old.close()
    words = ram.words(descriptor.first)
    words[3] = words[2]
    with update(library, ram, handed) as kernel:
        assert kernel.lib.kho_restore_vmalloc(descriptor.pack()) == 0
