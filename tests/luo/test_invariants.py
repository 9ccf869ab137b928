"""Every invariant that is checked, broken on purpose: exactly that one is reported, with its address.

`BREAKS` maps each id to its tests. `docs/inspect.md` shows the same table; `python -m
tests.luo.test_invariants` prints it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kho.abi import PAGE_SIZE, RESTORE_MAGIC
from kho.builder import MIB, Built, HandoverBuilder
from kho.check import PageStates, Segment
from kho.handover import Handover
from kho.setup_data import ScratchArea
from luo.check import TABLE, check, compare
from luo.flb import Flb
from tests.luo.images import (
    build,
    free_page,
    many_files,
    many_sessions,
    put,
    read,
    read_u64,
    set_bit,
    slot_of,
    verdict,
)

ROOT = Path(__file__).parent.parent.parent
TABLE_BEGIN = "<!-- table of invariants: python -m tests.luo.test_invariants -->\n"
TABLE_END = "<!-- end of table -->\n"


@dataclass
class Case:
    """A broken image: where the violation must point to, and what the caller of the check knows besides."""

    built: Built
    phys: int | None
    moment: str = "K"
    known: dict[str, Any] = field(default_factory=dict)


BREAKS: defaultdict[str, list[Callable[[], Case]]] = defaultdict(list)
"""Id -> functions that break exactly it in one image."""

BETWEEN_MOMENTS = {
    "INV-26": "test_change_between_moments",
    "INV-30": "test_change_between_moments",
    "INV-49": "test_change_between_moments",
}
"""Those that compare two images, and their test below."""


def breaks(id: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a way to break an invariant."""

    def register(function: Callable[[], Case]) -> Callable[[], Case]:
        BREAKS[id].append(function)
        return function

    return register


def fdt_case(old: bytes, new: bytes) -> Case:
    """Replace bytes in the root FDT."""
    built = build()
    data = built.memory.read(built.fdt_phys, PAGE_SIZE).tobytes()
    at = data.index(old)
    assert len(old) == len(new)
    built.memory.write(built.fdt_phys + at, new)
    return Case(built, built.fdt_phys)


# --- scratch ------------------------------------------------------------------------------------------------


@breaks("INV-1")
def scratch_not_aligned() -> Case:
    built = build()
    put(built, built.scratch_list.phys + 8, (4 << 20) + PAGE_SIZE)
    return Case(built, 8 << 20)


@breaks("INV-1")
def scratch_not_in_ram() -> Case:
    built = build()
    put(built, built.scratch_list.phys + 8, 64 << 20)
    return Case(built, 8 << 20)


@breaks("INV-1")
def scratch_areas_overlap() -> Case:
    built = build()
    built.memory.write(built.scratch_list.phys + 16, built.memory.read(built.scratch_list.phys, 16).tobytes())
    return Case(built, 8 << 20)


@breaks("INV-1")
def scratch_areas_missing() -> Case:
    built = build("J")
    built.scratch_list = type(built.scratch_list)(built.scratch_list.phys, 32)
    return Case(built, built.scratch_list.phys, "J")


@breaks("INV-2")
def low_scratch_above_4g() -> Case:
    areas = [ScratchArea(8 << 30, 0), ScratchArea(8 * MIB, 4 * MIB), ScratchArea(12 * MIB, 0)]
    builder = HandoverBuilder(scratch=areas)
    return Case(builder.finish(), 8 << 30)


@breaks("INV-4")
def scratch_of_another_chain() -> Case:
    built = build()
    earlier = [ScratchArea(4 * MIB, 4 * MIB), *built.scratch[1:]]
    return Case(built, built.scratch_list.phys, known={"earlier_scratch": earlier})


@breaks("INV-29")
def scratch_list_changed_by_kexec() -> Case:
    built = build()
    old = [*built.scratch[:2], ScratchArea(4 * MIB, 0)]
    return Case(built, built.scratch_list.phys + 32, known={"old_scratch": old})


@breaks("INV-29")
def scratch_list_cut_by_kexec() -> Case:
    built = build()
    old = [*built.scratch, ScratchArea(12 * MIB, 0)]
    return Case(built, built.scratch_list.phys, known={"old_scratch": old})


# --- root FDT and sub-trees ---------------------------------------------------------------------------------


@breaks("INV-5")
def fdt_not_preserved() -> Case:
    built = build()
    set_bit(built, built.fdt_phys, value=False)
    return Case(built, built.fdt_phys)


@breaks("INV-5")
def setup_data_points_elsewhere() -> Case:
    built = build()
    assert built.setup_data is not None
    put(built, built.setup_data + 16, built.fdt_phys + PAGE_SIZE)
    return Case(built, built.setup_data)


@breaks("INV-6")
def version_unknown() -> Case:
    return fdt_case(b"kho-v4", b"kho-v3")


@breaks("INV-6")
def fdt_magic() -> Case:
    return fdt_case(b"\xd0\x0d\xfe\xed", bytes(4))


@breaks("INV-6")
def memory_map_zero() -> Case:
    built = build()
    root = built.nodes[0][1]
    return fdt_case(root.to_bytes(8, "little"), bytes(8))


@breaks("INV-6")
def memory_map_misaligned() -> Case:
    built = build()
    root = built.nodes[0][1]
    return fdt_case(root.to_bytes(8, "little"), (root + 8).to_bytes(8, "little"))


@breaks("INV-6")
def fdt_too_large() -> Case:
    built = build()
    built.memory.write(built.fdt_phys + 4, (4097).to_bytes(4, "big"))
    return Case(built, built.fdt_phys)


@breaks("INV-7")
def subtree_twice() -> Case:
    builder = HandoverBuilder()
    builder.add_metadata()
    builder.add_subtree("other", b"abc")
    builder.fdt.root.children[0].name = "kexec-metadata"
    built = builder.finish()
    return Case(built, built.fdt_phys)


@breaks("INV-7")
def blob_not_preserved() -> Case:
    built = build()
    phys = built.addresses["blob:kexec-metadata"]
    set_bit(built, phys, value=False)
    return Case(built, phys)


@breaks("INV-7")
def blob_property_missing() -> Case:
    builder = HandoverBuilder()
    builder.add_metadata()
    del builder.fdt.root.children[0].properties["blob-size"]
    built = builder.finish()
    return Case(built, built.fdt_phys)


@breaks("INV-7")
def blob_larger_than_its_block() -> Case:
    builder = HandoverBuilder()
    phys = builder.add_subtree("other", b"abc")
    builder.allocate()
    size = (PAGE_SIZE + 1).to_bytes(8, "little")
    builder.fdt.set_property(builder.fdt.root.children[0], "blob-size", size)
    return Case(builder.finish(), phys + PAGE_SIZE)


@breaks("INV-7")
def blob_not_in_ram() -> Case:
    builder = HandoverBuilder()
    builder.add_subtree("other", b"abc")
    builder.fdt.set_property(builder.fdt.root.children[0], "preserved-data", (1 << 40).to_bytes(8, "little"))
    return Case(builder.finish(), 1 << 40)


@breaks("INV-7")
def blobs_share_a_page() -> Case:
    builder = HandoverBuilder()
    phys = builder.add_subtree("one", b"abc")
    builder.add_subtree("two", b"def", phys + 16)
    return Case(builder.finish(), phys)


@breaks("INV-7")
def metadata_version() -> Case:
    built = build()
    phys = built.addresses["blob:kexec-metadata"]
    put(built, phys, 2, 4)
    return Case(built, phys)


@breaks("INV-7")
def memblock_blob_malformed() -> Case:
    built = build()
    phys = built.addresses["blob:memblock"]
    put(built, phys, 0, 4)
    return Case(built, phys)


@breaks("INV-7")
def kho_test_magic() -> Case:
    built = build()
    phys = built.addresses["blob:kho_test"]
    data = built.memory.read(phys, PAGE_SIZE).tobytes()
    put(built, phys + data.index((0x4B484F21).to_bytes(4, "little")), 1, 4)
    return Case(built, phys)


# --- tree ---------------------------------------------------------------------------------------------------


@breaks("INV-8")
def node_misaligned() -> Case:
    built = build()
    slot = slot_of(built, built.fdt_phys, 0, 2) + 8
    put(built, slot, free_page(built) + 8)
    return Case(built, free_page(built) + 8)


@breaks("INV-8")
def node_not_in_ram() -> Case:
    built = build()
    put(built, slot_of(built, built.fdt_phys, 0, 3) + 8, 1 << 45)
    return Case(built, 1 << 45)


@breaks("INV-8")
def node_twice() -> Case:
    built = build()
    slot = slot_of(built, built.fdt_phys, 0, 1)
    put(built, slot + 8, read_u64(built, slot))
    return Case(built, read_u64(built, slot))


@breaks("INV-8")
def tree_is_a_cycle() -> Case:
    built = build()
    root = built.nodes[0][1]
    put(built, slot_of(built, built.fdt_phys, 0, 4) + 8, root)
    return Case(built, root)


@breaks("INV-8")
def node_in_scratch() -> Case:
    built = build()
    slot = slot_of(built, built.fdt_phys, 0, 1)
    leaf = read_u64(built, slot)
    built.memory.write(9 << 20, built.memory.read(leaf, PAGE_SIZE).tobytes())
    put(built, slot, 9 << 20)
    return Case(built, 9 << 20)


@breaks("INV-8")
def node_preserved() -> Case:
    built = build()
    leaf = read_u64(built, slot_of(built, built.fdt_phys, 0, 1))
    set_bit(built, leaf)
    return Case(built, leaf)


@breaks("INV-8")
def root_not_in_ram() -> Case:
    built = build()
    root = built.nodes[0][1]
    case = fdt_case(root.to_bytes(8, "little"), (1 << 40).to_bytes(8, "little"))
    return Case(case.built, 1 << 40)


@breaks("INV-8")
def node_under_a_control_page() -> Case:
    built = build("J")
    phys = built.nodes[3][1]
    return Case(built, phys, "J", {"segments": [], "control_pages": [phys]})


@breaks("INV-9")
def block_not_in_ram() -> Case:
    built = build()
    set_bit(built, 32 << 20)
    return Case(built, 32 << 20)


@breaks("INV-9")
def block_ends_outside_ram() -> Case:
    # the last page of RAM as a block of two pages cannot be: take one that begins where RAM ends
    built = build()
    order = next(order for _, order in built.blocks if order)
    set_bit(built, 16 << 20, order)
    return Case(built, 16 << 20)


@breaks("INV-10")
def blocks_overlap() -> Case:
    built = build()
    phys = next(phys for phys, order in built.blocks if order > 0)
    set_bit(built, phys + PAGE_SIZE, 0)
    return Case(built, phys + PAGE_SIZE)


@breaks("INV-11")
def scratch_preserved() -> Case:
    built = build()
    set_bit(built, 9 << 20)
    return Case(built, 9 << 20)


@breaks("INV-12")
def file_block_lost() -> Case:
    built = build()
    phys = built.addresses["file_block:gamma:0"]
    set_bit(built, phys, value=False)
    return Case(built, phys)


@breaks("INV-12")
def reserve_mem_lost() -> Case:
    built = build()
    region = read(built).reserve_mem[0]
    phys, order = next(block for block in built.blocks if region.phys <= block[0] < region.phys + region.size)
    set_bit(built, phys, order, value=False)
    return Case(built, phys)


@breaks("INV-12")
def kho_test_folio_lost() -> Case:
    built = build()
    test = read(built).kho_test
    assert test is not None
    set_bit(built, int(test.phys[1]), int(test.order[1]), value=False)
    return Case(built, int(test.phys[1]))


@breaks("INV-12")
def folio_with_two_owners() -> Case:
    built = build()
    array = built.addresses["array:alpha:1"]
    put(built, array + 16, read_u64(built, array))
    return Case(built, built.addresses["folio:alpha:1:0"])


@breaks("INV-12")
def record_of_two_files() -> Case:
    built = build()
    block = built.addresses["file_block:alpha:0"]
    put(built, block + 16 + 2 * 64 + 48, built.addresses["record:alpha:1"])
    return Case(built, built.addresses["record:alpha:1"])


@breaks("INV-12")
def file_block_of_two_sessions() -> Case:
    built = build()
    sessions = built.addresses["session_block:0"]
    put(built, sessions + 16 + 2 * 80 + 64, built.addresses["file_block:alpha:0"])
    return Case(built, built.addresses["file_block:alpha:0"])


# --- jump ---------------------------------------------------------------------------------------------------


@breaks("INV-13")
def control_page_preserved() -> Case:
    built = build("J")
    phys = built.addresses["folio:alpha:1:0"]
    return Case(built, phys, "J", {"segments": [Segment(9 << 20, 4096)], "control_pages": [phys]})


@breaks("INV-28")
def segment_outside_scratch() -> Case:
    built = build("J")
    phys = free_page(built)
    return Case(built, phys, "J", {"segments": [Segment(phys, PAGE_SIZE, "kernel")]})


@breaks("INV-28")
def segments_overlap() -> Case:
    built = build("J")
    segments = [Segment(9 << 20, 1 << 20, "kernel"), Segment((9 << 20) + PAGE_SIZE, PAGE_SIZE, "initrd")]
    return Case(built, (9 << 20) + PAGE_SIZE, "J", {"segments": segments})


@breaks("INV-31")
def entry_length() -> Case:
    built = build()
    assert built.setup_data is not None
    put(built, built.setup_data + 12, 24, 4)
    return Case(built, built.setup_data)


@breaks("INV-31")
def entry_fdt_size() -> Case:
    built = build()
    assert built.setup_data is not None
    put(built, built.setup_data + 24, 345)
    return Case(built, built.setup_data)


@breaks("INV-31")
def entry_scratch_size() -> Case:
    built = build()
    assert built.setup_data is not None
    put(built, built.setup_data + 40, 47)
    return Case(built, built.setup_data)


@breaks("INV-31")
def entry_twice() -> Case:
    built = build()
    assert built.setup_data is not None
    second = built.setup_data + 0x100
    built.memory.write(second, built.memory.read(built.setup_data, 48).tobytes())
    put(built, built.setup_data, second)
    return Case(built, second)


@breaks("INV-35")
def struct_page_without_magic() -> Case:
    built = build()
    handover = read(built)
    lost = int(handover.preserved.phys[4])

    def private(phys: np.typing.NDArray[np.uint64]) -> np.typing.NDArray[np.uint64]:
        words = np.uint64(RESTORE_MAGIC << 32) | handover.preserved.order.astype(np.uint64)
        return np.where(phys == lost, np.uint64(0), words)

    return Case(built, lost, "F", {"page_states": PageStates(private)})


@breaks("INV-35")
def magic_where_nothing_is_preserved() -> Case:
    built = build()
    handover = read(built)
    words = np.uint64(RESTORE_MAGIC << 32) | handover.preserved.order.astype(np.uint64)
    strange = free_page(built)
    carriers = np.append(handover.preserved.phys, np.uint64(strange))
    return Case(built, strange, "F", {"page_states": PageStates(lambda _: words, lambda: carriers)})


# --- LUO ----------------------------------------------------------------------------------------------------


@breaks("INV-14")
def luo_version() -> Case:
    built = build()
    built.memory.write(built.addresses["state"], b"luo-v4")
    return Case(built, built.addresses["state"])


@breaks("INV-14")
def luo_state_short() -> Case:
    builder = HandoverBuilder()
    phys = builder.add_subtree("LUO", bytes(16))
    return Case(builder.finish(), phys)


@breaks("INV-14")
def live_update_number() -> Case:
    built = build()
    return Case(built, built.addresses["state"], known={"received_number": 4})


@breaks("INV-14")
def live_update_number_zero() -> Case:
    built = build()
    put(built, built.addresses["state"] + 8, 0)
    return Case(built, built.addresses["state"])


@breaks("INV-14")
def flb_page_missing() -> Case:
    built = build()
    put(built, built.addresses["state"] + 24, 0)
    return Case(built, 0)


@breaks("INV-14")
def flb_page_lost() -> Case:
    built = build()
    set_bit(built, built.addresses["flbs"], value=False)
    return Case(built, built.addresses["flbs"])


@breaks("INV-14")
def flb_page_count() -> Case:
    built = build()
    put(built, built.addresses["flbs"], 2)
    return Case(built, built.addresses["flbs"])


@breaks("INV-15")
def session_block_lost() -> Case:
    built = build()
    set_bit(built, built.addresses["session_block:0"], value=False)
    return Case(built, built.addresses["session_block:0"])


@breaks("INV-15")
def sessions_not_in_ram() -> Case:
    built = build()
    put(built, built.addresses["state"] + 16, 1 << 50)
    return Case(built, 1 << 50)


@breaks("INV-15")
def session_chain_is_a_cycle() -> Case:
    built = build(sessions=many_sessions(60))
    put(built, built.addresses["session_block:1"], built.addresses["session_block:0"])
    return Case(built, built.addresses["session_block:0"])


@breaks("INV-15")
def session_chain_misaligned() -> Case:
    built = build(sessions=many_sessions(60))
    put(built, built.addresses["session_block:0"], built.addresses["session_block:1"] + 8)
    return Case(built, built.addresses["session_block:1"] + 8)


@breaks("INV-16")
def file_chain_is_a_cycle() -> Case:
    built = build()
    block = built.addresses["file_block:gamma:0"]
    put(built, block, block)
    return Case(built, block)


@breaks("INV-16")
def file_block_empty() -> Case:
    built = build()
    block = built.addresses["file_block:gamma:0"]
    put(built, block + 8, 0)
    return Case(built, block)


@breaks("INV-16")
def file_block_overfull() -> Case:
    built = build()
    block = built.addresses["file_block:gamma:0"]
    put(built, block + 8, 64)
    return Case(built, block)


@breaks("INV-16")
def file_block_not_full() -> Case:
    built = build(sessions=many_files(70))
    block = built.addresses["file_block:files:0"]
    put(built, block + 8, 62)
    return Case(built, block)


@breaks("INV-19")
def session_block_overfull() -> Case:
    built = build()
    put(built, built.addresses["session_block:0"] + 8, 52)
    return Case(built, built.addresses["session_block:0"])


@breaks("INV-19")
def session_block_empty() -> Case:
    built = build(sessions=many_sessions(2))
    put(built, built.addresses["session_block:0"] + 8, 0)
    return Case(built, built.addresses["session_block:0"])


@breaks("INV-19")
def session_not_counted() -> Case:
    built = build()
    block = built.addresses["session_block:0"]
    put(built, block + 8, 2)
    return Case(built, block + 16 + 2 * 80)


@breaks("INV-19")
def session_name_twice() -> Case:
    built = build()
    block = built.addresses["session_block:0"]
    built.memory.write(block + 16 + 80, b"alpha")
    return Case(built, block + 16 + 80)


@breaks("INV-19")
def session_name_without_end() -> Case:
    built = build()
    block = built.addresses["session_block:0"]
    built.memory.write(block + 16, b"n" * 64)
    return Case(built, block + 16)


@breaks("INV-19")
def session_name_empty() -> Case:
    built = build()
    block = built.addresses["session_block:0"]
    built.memory.write(block + 16, bytes(64))
    return Case(built, block + 16)


@breaks("INV-20")
def file_count() -> Case:
    built = build()
    entry = built.addresses["session_block:0"] + 16
    put(built, entry + 72, 4)
    return Case(built, entry)


@breaks("INV-20")
def file_count_without_files() -> Case:
    built = build()
    entry = built.addresses["session_block:0"] + 16 + 80
    put(built, entry + 72, 1)
    return Case(built, entry)


@breaks("INV-20")
def file_not_counted() -> Case:
    built = build()
    block = built.addresses["file_block:alpha:0"]
    put(built, block + 8, 2)
    return Case(built, block + 16 + 2 * 64)


@breaks("INV-20")
def token_twice() -> Case:
    built = build()
    entry = built.addresses["file_block:alpha:0"] + 16 + 64
    put(built, entry + 56, 1)
    return Case(built, entry)


@breaks("INV-20")
def handler_unknown() -> Case:
    built = build()
    entry = built.addresses["file_block:alpha:0"] + 16
    built.memory.write(entry, b"memfd-v1")
    return Case(built, entry)


@breaks("INV-20")
def handler_without_end() -> Case:
    built = build()
    entry = built.addresses["file_block:alpha:0"] + 16
    built.memory.write(entry, b"h" * 48)
    return Case(built, entry)


@breaks("INV-20")
def data_zero() -> Case:
    built = build()
    put(built, built.addresses["file_block:alpha:0"] + 16 + 48, 0)
    return Case(built, 0)


@breaks("INV-20")
def data_points_to_free_memory() -> Case:
    built = build()
    phys = free_page(built)
    put(built, built.addresses["file_block:alpha:0"] + 16 + 48, phys)
    return Case(built, phys)


@breaks("INV-21")
def flb_count() -> Case:
    built = build()
    put(built, built.addresses["flbs"] + 8, 64)
    return Case(built, built.addresses["flbs"])


@breaks("INV-21")
def flb_twice() -> Case:
    built = build(flbs=(Flb("one", 1, 1), Flb("one", 2, 1)))
    return Case(built, built.addresses["flbs"] + 16 + 64)


@breaks("INV-21")
def flb_without_users() -> Case:
    built = build(flbs=(Flb("one", 1, 0),))
    return Case(built, built.addresses["flbs"] + 16)


@breaks("INV-23")
def record_flags() -> Case:
    built = build()
    record = built.addresses["record:alpha:1"]
    put(built, record + 20, 1, 4)
    return Case(built, record)


@breaks("INV-23")
def record_seals() -> Case:
    built = build()
    record = built.addresses["record:alpha:1"]
    put(built, record + 16, 0x40, 4)
    return Case(built, record)


@breaks("INV-23")
def record_without_folios() -> Case:
    built = build()
    record = built.addresses["record:alpha:1"]
    put(built, record + 24, 0)
    return Case(built, record)


@breaks("INV-23")
def record_lost() -> Case:
    built = build()
    record = built.addresses["record:alpha:1"]
    set_bit(built, record, value=False)
    return Case(built, record)


@breaks("INV-24")
def folio_index() -> Case:
    built = build()
    array = built.addresses["array:gamma:1"]
    put(built, array + 16 + 8, 2)
    return Case(built, array + 16)


@breaks("INV-24")
def folio_flags() -> Case:
    built = build()
    array = built.addresses["array:gamma:1"]
    put(built, array + 16 + 6, 0, 2)
    return Case(built, array + 16)


@breaks("INV-24")
def folio_hole() -> Case:
    built = build()
    array = built.addresses["array:gamma:1"]
    put(built, array, 3 << 52)
    return Case(built, array)


@breaks("INV-24")
def folio_lost() -> Case:
    built = build()
    folio = built.addresses["folio:gamma:1:1"]
    set_bit(built, folio, 2, value=False)
    return Case(built, folio)


@breaks("INV-24")
def folio_with_another_order() -> Case:
    built = build()
    folio = built.addresses["folio:gamma:1:2"]
    set_bit(built, folio, 4, value=False)
    set_bit(built, folio, 3)
    return Case(built, built.addresses["record:gamma:1"])


@breaks("INV-24")
def file_larger_than_its_folios() -> Case:
    built = build()
    record = built.addresses["record:gamma:1"]
    put(built, record + 8, PAGE_SIZE * 21 + 1)
    return Case(built, record)


@breaks("INV-24")
def file_smaller_than_its_folios() -> Case:
    built = build()
    record = built.addresses["record:gamma:1"]
    put(built, record + 8, PAGE_SIZE * 5)
    return Case(built, record)


@breaks("INV-25")
def chunk_lost() -> Case:
    built = build()
    chunk = built.addresses["chunk:gamma:1"]
    set_bit(built, chunk, value=False)
    return Case(built, chunk)


@breaks("INV-25")
def array_page_lost() -> Case:
    built = build()
    array = built.addresses["array:gamma:1"]
    set_bit(built, array, value=False)
    return Case(built, array)


@breaks("INV-25")
def array_pages() -> Case:
    built = build()
    record = built.addresses["record:gamma:1"]
    put(built, record + 40, 2, 4)
    return Case(built, record)


@breaks("INV-25")
def chunk_without_blocks() -> Case:
    built = build()
    chunk = built.addresses["chunk:gamma:1"]
    put(built, chunk + 8, 0)
    return Case(built, chunk)


@breaks("INV-25")
def chunks_are_a_cycle() -> Case:
    built = build()
    chunk = built.addresses["chunk:gamma:1"]
    put(built, chunk, chunk)
    return Case(built, chunk)


@breaks("INV-25")
def array_elsewhere() -> Case:
    built = build()
    phys = free_page(built)
    put(built, built.addresses["chunk:gamma:1"] + 8, phys)
    return Case(built, phys)


# --- tests --------------------------------------------------------------------------------------------------


CASES = [pytest.param(id, make, id=f"{id}-{make.__name__}") for id, made in BREAKS.items() for make in made]


@pytest.mark.parametrize(("id", "make"), CASES)
def test_exactly_one_is_reported(id: str, make: Callable[[], Case]) -> None:
    case = make()
    report = verdict(case.built, case.moment, **case.known)
    found = [(violation.id, violation.phys, violation.message) for violation in report.violations]
    assert {violation.id for violation in report.violations} == {id}, found
    assert case.phys in [violation.phys for violation in report.violations], found
    assert id in report.checked
    assert not report.ok
    assert all(violation.moment == case.moment and violation.message for violation in report.violations)


@pytest.mark.parametrize("moment", ["J", "K", "F"])
def test_healthy_image_has_no_violation(moment: str) -> None:
    report = verdict(build(moment), moment)
    assert report.ok, report.violations
    assert set(report.checked) | set(report.not_checked) == set(TABLE)
    assert not set(report.checked) & set(report.not_checked)
    assert all(report.not_checked.values())


def test_everything_known_leaves_nothing_open() -> None:
    """With all that can be given, the only rows left out belong to other moments, or to a run."""
    built = build()
    scratch = built.scratch
    report = verdict(built, "K", old_scratch=scratch, earlier_scratch=scratch, received_number=0)
    at_k = {row.id for row in TABLE.values() if row.check is not None and "K" in row.moments}
    assert set(report.checked) == at_k and report.ok
    jump = build("J")
    known = {
        "segments": [Segment(9 << 20, 1 << 20)],
        "control_pages": [free_page(jump)],
        "earlier_scratch": scratch,
    }
    report = verdict(jump, "J", **known)
    assert set(report.checked) == {
        row.id for row in TABLE.values() if row.check is not None and "J" in row.moments
    }
    assert report.ok, report.violations


def test_every_check_has_a_case_that_breaks_it() -> None:
    checked = {row.id for row in TABLE.values() if row.check is not None}
    assert checked == set(BREAKS)
    assert set(BETWEEN_MOMENTS) <= set(TABLE) - checked
    assert [row.id for row in TABLE.values()] == [f"INV-{number}" for number in range(1, 51)]


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("folio:gamma:1:1", "INV-26"),
        ("record:gamma:1", "INV-49"),
        ("array:gamma:1", "INV-49"),
        ("chunk:gamma:1", "INV-49"),
        ("session_block:0", "INV-49"),
        ("file_block:gamma:0", "INV-49"),
        ("flbs", "INV-49"),
        ("state", "INV-49"),
        ("blob:kexec-metadata", "INV-49"),
        ("node", "INV-49"),
        ("fdt", "INV-49"),
        ("free", "INV-30"),
    ],
)
def test_change_between_moments(name: str, id: str) -> None:
    before, after = build("J"), build("J")
    places = {"node": before.nodes[2][1], "fdt": before.fdt_phys, "free": free_page(before)}
    phys = places.get(name) or before.addresses[name]
    first = Handover.read(before.memory, before.fdt_phys, before.scratch_list)
    second = Handover.read(after.memory, after.fdt_phys, after.scratch_list)
    assert compare(first, second).ok
    put(after, phys + 4000, 0x55AA)
    report = compare(first, second)
    assert [(violation.id, violation.phys) for violation in report.violations] == [(id, phys)]
    assert compare(first, second, may_change=[phys]).ok
    put(after, phys + 4000, read_u64(before, phys + 4000))
    put(after, (9 << 20) + 8, 1)
    put(after, 0x500, 1)
    assert compare(first, second).ok, "scratch and the first MiB may change"


def test_scratch_list_between_moments() -> None:
    before, after = build("J"), build("K")
    put(after, after.scratch_list.phys + 32, 4 * MIB)
    first, second = read(before, "J"), read(after)
    report = compare(first, second, may_change=[before.scratch_list.phys])
    assert {violation.id for violation in report.violations} == {"INV-29"}
    report = compare(first, second, ("K", "K"), may_change=[before.scratch_list.phys])
    assert {violation.id for violation in report.violations} == {"INV-4"}


def test_reused_tree_pages_are_no_violation_at_f() -> None:
    built = build()
    for _, phys in built.nodes[1:]:
        built.memory.write(phys, b"\xa5" * PAGE_SIZE)
    report = verdict(built, "F")
    assert report.ok, report.violations
    assert "reused" in report.not_checked["INV-24"]
    assert {"INV-1", "INV-5", "INV-7", "INV-14", "INV-20"} <= set(report.checked)


def test_damaged_tree_suppresses_what_depends_on_it() -> None:
    built = build()
    put(built, slot_of(built, built.fdt_phys, 0, 1), 8)
    report = verdict(built)
    assert {violation.id for violation in report.violations} == {"INV-8"}
    assert "INV-8" in report.not_checked["INV-12"]


def test_violations_are_limited() -> None:
    built = build()
    leaf = read_u64(built, slot_of(built, built.fdt_phys, 0, 1))
    built.memory.write(leaf + PAGE_SIZE // 8, b"\xff" * (PAGE_SIZE - PAGE_SIZE // 8))
    report = check(read(built))
    assert {violation.id for violation in report.violations} == {"INV-9"}
    assert len(report.violations) < 1000
    assert "more" in report.violations[-1].message


def markdown() -> str:
    """The table of docs/inspect.md."""
    lines = [
        "| id | what holds | moments | broken by (`tests/luo/test_invariants.py`) |",
        "|---|---|---|---|",
    ]
    for row in TABLE.values():
        if row.check is not None:
            names = ", ".join(f"`{make.__name__}`" for make in BREAKS[row.id])
        elif row.id in BETWEEN_MOMENTS:
            names = f"`{BETWEEN_MOMENTS[row.id]}`"
        else:
            names = f"not checked: {row.reason}"
        lines.append(f"| {row.id} | {row.title} | {' '.join(row.moments) or '–'} | {names} |")
    return "\n".join(lines) + "\n"


def test_documentation_has_the_table() -> None:
    text = (ROOT / "docs" / "inspect.md").read_text("utf-8")
    assert TABLE_BEGIN + markdown() + TABLE_END in text, (
        "run python -m tests.luo.test_invariants and paste the table"
    )


if __name__ == "__main__":
    print(TABLE_BEGIN + markdown() + TABLE_END, end="")
