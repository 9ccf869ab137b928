"""The next kernel adopts what was preserved, and gives it back once, whole, and untouched."""

from __future__ import annotations

import ctypes
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guest.kho_cases import OLD_PAGES, RAM_SIZE, Populate, blocks_of, check_adopted, decode, update
from tests.guest.kho_host import MIB, PAGE, Kernel, Ram


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
            check_adopted(kernel, model)
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
    """A range that was cut in another way, as at the border of two memory nodes."""
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
        assert (
            kernel.lib.kho_retrieve_subtree(b"kexec-metadata", ctypes.byref(phys_out), ctypes.byref(size))
            == 0
        )
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
