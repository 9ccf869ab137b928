"""Finding the handover in an image: what counts, what does not, and what is too much."""

from __future__ import annotations

from pathlib import Path

import pytest

from kho.abi import KHO_DATA, PAGE_SIZE
from kho.builder import MIB, HandoverBuilder
from kho.errors import Ambiguous, FormatError, NotFound, OutOfRange
from kho.handover import Handover
from kho.memory import Buffer, Bytes, Reader
from kho.setup_data import KhoData, ScratchArea, ScratchList, find_chains
from luo.check import check
from tests.luo.images import build, put

ROOT = Path(__file__).parent.parent.parent


def two(first_count: int, second_count: int) -> tuple[Buffer, list[int]]:
    """Two whole handovers in one memory."""
    builders = [HandoverBuilder(first=MIB), HandoverBuilder(first=4 * MIB)]
    memory = builders[0].memory
    builders[1].memory = memory
    found = []
    for builder, count in zip(builders, (first_count, second_count), strict=True):
        builder.add_metadata(count=count)
        found.append(builder.finish("J").fdt_phys)
    return memory, found


def test_nothing() -> None:
    with pytest.raises(NotFound, match="kho-v4"):
        Handover.read(Buffer(1 << 20))


def test_near_miss_is_named() -> None:
    built = build("J")
    built.memory.write(built.fdt_phys + 0x4C, b"kho-v3")
    with pytest.raises(NotFound, match="kho-v3"):
        Handover.read(built.memory)
    with pytest.raises(FormatError, match="kho-v3") as caught:
        Handover.read(built.memory, built.fdt_phys)
    assert caught.value.invariant == "INV-6" and caught.value.phys == built.fdt_phys


def test_the_newest_of_two() -> None:
    for counts, chosen in (((1, 2), 1), ((5, 4), 0)):
        memory, found = two(*counts)
        handover = Handover.read(memory)
        assert handover.fdt_phys == found[chosen] and handover.location.found_by == "search"
        assert len(handover.location.rejected) == 1


def test_two_that_nothing_tells_apart() -> None:
    memory, found = two(3, 3)
    with pytest.raises(Ambiguous) as caught:
        Handover.read(memory)
    assert all(f"{phys:#x}" in caught.value.message for phys in found) and "--fdt" in caught.value.message
    for phys in found:
        assert Handover.read(memory, phys).fdt_phys == phys


def test_a_copy_of_the_fdt_is_not_it() -> None:
    """A program that read the blob has it in a page of its own; that page is not preserved."""
    built = build("J")
    for copy in (6 << 20, 1 << 20):
        built.memory.write(copy, built.memory.read(built.fdt_phys, PAGE_SIZE).tobytes())
        assert Handover.read(built.memory).fdt_phys == built.fdt_phys


def test_image_that_waits_to_be_copied_is_not_the_next_kernel() -> None:
    """At J the pages of the loaded image hold the setup_data entry already, outside scratch."""
    built = build("J")
    waiting = 6 << 20
    entry = KhoData(0, KHO_DATA.size, built.fdt_phys, PAGE_SIZE, 9 << 20, 48)
    built.memory.write(waiting + 0x60, entry.pack())
    handover = Handover.read(built.memory)
    assert handover.location.kho_data is None and handover.scratch is None
    # nor when the destination still holds the list that an earlier update left there
    built.memory.write(9 << 20, built.memory.read(built.scratch_list.phys, 48).tobytes())
    handover = Handover.read(built.memory)
    assert handover.location.kho_data is None and check(handover).moment == "J"


def test_given_places() -> None:
    built = build("J")
    handover = Handover.read(built.memory, built.fdt_phys, built.scratch_list)
    assert handover.location.found_by == "given" and handover.location.scratch_source == "given"
    assert handover.scratch == built.scratch
    areas = [ScratchArea(8 << 20, 4 << 20)]
    assert Handover.read(built.memory, built.fdt_phys, areas).scratch == areas
    for fdt, scratch in ((1 << 40, None), (built.fdt_phys, ScratchList(1 << 40, 48))):
        with pytest.raises(OutOfRange):
            Handover.read(built.memory, fdt, scratch)


def test_setup_data_can_be_given() -> None:
    built = build("K")
    assert built.setup_data is not None
    handover = Handover.read(built.memory, built.fdt_phys, setup_data=built.setup_data)
    assert handover.location.leads_here and handover.scratch == built.scratch
    report = check(handover)
    assert report.moment == "K" and report.ok and "INV-31" in report.checked


def test_nothing_is_searched_when_the_place_is_given() -> None:
    built = build("K")

    class Counting:
        ranges = tuple(built.memory.ranges)
        read_bytes = 0

        def read(self, phys: int, size: int) -> Bytes:
            self.read_bytes += size
            return built.memory.read(phys, size)

    memory = Counting()
    check(Handover.read(memory, built.fdt_phys, built.scratch_list), "K")
    assert memory.read_bytes < 1 << 20
    Handover.read(memory)
    assert memory.read_bytes > 16 << 20


def test_sparse_memory_is_searched_where_it_has_been_written() -> None:
    built = build("K")

    class Sparse:
        ranges = ((0, 1 << 45),)

        def populated(self) -> list[tuple[int, int]]:
            return [(0, 16 << 20)]

        def read(self, phys: int, size: int) -> Bytes:
            return built.memory.read(phys, size)

    handover = Handover.read(Sparse())
    assert handover.fdt_phys == built.fdt_phys and check(handover).ok


def test_boot_params_of_an_earlier_kernel() -> None:
    built = build("K")
    assert built.boot_params is not None and built.setup_data is not None
    # the entry leads to a page that is no FDT: it is this update's, and damaged
    put(built, built.setup_data + 16, 6 << 20)
    report = check(Handover.read(built.memory))
    assert report.moment == "K" and {violation.id for violation in report.violations} == {"INV-5"}
    chains = find_chains(Reader(built.memory))
    assert [chain.boot_params for chain in chains] == [built.boot_params]

