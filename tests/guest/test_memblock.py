"""memblock against a model that knows nothing of regions: a table that says for each page what it is.

Pages are the unit of the model; the addresses that are used are multiples of 4 KiB except where bytes matter.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guest.mm_host import GIB, KERN, MIB, NOINIT, PAGE, REGION, SCRATCH, Mm, Panic, Region, load

WINDOW = 64
"""pages that the operations of a property test are about"""
ARENA = (0x1000, 0x1040)
"""pages above the window that nobody but memblock's own arrays uses"""


@pytest.fixture(scope="module", params=[False, True], ids=["top-down", "bottom-up"])
def mm(request: pytest.FixtureRequest) -> Mm:
    return load(request.param)


@pytest.fixture(scope="module")
def old() -> Mm:
    return load(False)


MEMORY = ("add", "remove", "mark_kho_scratch", "clear_kho_scratch")
"""operations on the array of memory; all others are on the reserved one"""

# ---- the model ----------------------------------------------------------------------------------------


@dataclass
class Model:
    """What is RAM and what is reserved, by page: flags, or absent."""

    memory: dict[int, int] = field(default_factory=dict)
    reserved: dict[int, int] = field(default_factory=dict)
    scratch_only: bool = False

    @staticmethod
    def runs(table: dict[int, int]) -> list[Region]:
        out: list[Region] = []
        for page, flags in sorted(table.items()):
            if out and out[-1][1] == page * PAGE and out[-1][2] == flags:
                out[-1] = (out[-1][0], (page + 1) * PAGE, flags)
            else:
                out.append((page * PAGE, (page + 1) * PAGE, flags))
        return out

    def apply(self, name: str, start: int, count: int) -> None:
        pages = range(start, start + count)
        table = self.memory if name in MEMORY else self.reserved
        for page in pages:
            match name:
                case "add" | "reserve":
                    table.setdefault(page, 0)
                case "reserve_kern":
                    table.setdefault(page, KERN)
                case "remove" | "phys_free":
                    table.pop(page, None)
                case "reserved_mark_noinit" if page in table:
                    table[page] |= NOINIT
                case "mark_kho_scratch" if page in table:
                    table[page] |= SCRATCH
                case "clear_kho_scratch" if page in table:
                    table[page] &= ~SCRATCH
                case "noinit":
                    table[page] = table.get(page, 0) | NOINIT

    def places(self, count: int, align: int, start: int, end: int) -> list[int]:
        """Where `count` pages can be allocated. They never span regions that differ in their flags."""

        def usable(page: int) -> bool:
            flags = self.memory.get(page)
            return (
                flags is not None
                and page not in self.reserved
                and (not self.scratch_only or flags & SCRATCH > 0)
            )

        return [
            at
            for at in range(max(start, 1), end - count + 1)
            if at % align == 0
            and all(usable(p) and self.memory[p] == self.memory[at] for p in range(at, at + count))
        ]


RANGES = (*MEMORY, "reserve", "reserve_kern", "phys_free", "reserved_mark_noinit")
spans = st.tuples(st.integers(0, WINDOW - 1), st.integers(0, 12)).map(
    lambda s: (s[0], min(s[1], WINDOW - s[0]))
)
range_operations = st.tuples(st.sampled_from(RANGES), spans)
switches = st.tuples(st.just("scratch_only"), st.booleans())
operations = st.one_of(
    range_operations,
    st.tuples(st.just("noinit"), st.lists(spans, max_size=8)),
    st.tuples(
        st.just("alloc"),
        st.tuples(
            st.integers(1, 8), st.sampled_from([1, 2, 4, 8]), st.integers(0, WINDOW), st.integers(1, WINDOW)
        ),
    ),
    switches,
)


def disjoint(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending, not overlapping, not empty."""
    out: list[tuple[int, int]] = []
    for start, count in sorted(ranges):
        if count and (not out or start >= out[-1][0] + out[-1][1]):
            out.append((start, count))
    return out


def perform(mm: Mm, model: Model, op: tuple[str, object]) -> None:
    """One operation on both; what memblock answers is what the model says."""
    match op:
        case ("alloc", (int(count), int(align), int(start), int(end))):
            places = model.places(count, align, start, end)
            at = mm.call("memblock_phys_alloc_range", count * PAGE, align * PAGE, start * PAGE, end * PAGE)
            expected = (places[0] if mm.bottom_up else places[-1]) * PAGE if places else 0
            assert at == expected, f"{count} pages at {align} in {start}..{end}: {at:#x} is not {expected:#x}"
            if at:
                model.apply("reserve_kern", at // PAGE, count)
        case ("scratch_only", bool(on)):
            mm.call("memblock_set_kho_scratch_only" if on else "memblock_clear_kho_scratch_only")
            model.scratch_only = on
        case ("noinit", list(ranges)):
            ranges = disjoint(ranges)
            assert mm.noinit([(s * PAGE, n * PAGE) for s, n in ranges]) == 0
            for start, count in ranges:
                model.apply("noinit", start, count)
        case (str(name), (int(start), int(count))):
            assert mm.error(f"memblock_{name}", start * PAGE, count * PAGE) == 0
            model.apply(name, start, count)


def compare(mm: Mm, model: Model) -> None:
    """Both arrays, outside of where memblock keeps its own arrays."""
    arrays = [place for which in ("memory", "reserved") if (place := mm.array_place(which))]
    own = [p for start, end in arrays for p in range(start // PAGE, end // PAGE)]
    assert len(own) == len(set(own)), "memblock's arrays overlap"
    expected = dict(model.reserved)
    for page in own:
        assert page not in expected, (
            f"an array of memblock is in page {page:#x}, which is reserved for something else"
        )
        assert page in model.memory, f"an array of memblock is in page {page:#x}, which is no memory"
        expected[page] = KERN
    assert mm.regions("memory") == Model.runs(model.memory)
    assert mm.regions("reserved") == Model.runs(expected)


allocations = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([1, 2, 4, 8]), st.just(0), st.integers(WINDOW // 2, WINDOW)),
    min_size=1,
    max_size=6,
)


@given(st.sets(st.integers(0, WINDOW - 1)), st.sets(st.integers(0, WINDOW - 1), max_size=8), allocations)
@settings(max_examples=300)
def test_allocations_in_memory_with_holes(
    mm: Mm, reserved: set[int], scratch: set[int], requests: list[tuple[int, int, int, int]]
) -> None:
    mm.reset()
    model = Model()
    perform(mm, model, ("add", (0, WINDOW)))
    for page in reserved:
        perform(mm, model, ("reserve", (page, 1)))
    for page in scratch:
        perform(mm, model, ("mark_kho_scratch", (page, 1)))
    for request in requests:
        perform(mm, model, ("alloc", request))
    compare(mm, model)


@given(st.lists(operations, max_size=40))
@settings(max_examples=300)
def test_any_sequence_is_what_the_model_says(mm: Mm, ops: list[tuple[str, object]]) -> None:
    mm.reset()
    model = Model()
    # Where the arrays of noinit ranges can be; bottom-up looks low first.
    if mm.bottom_up:
        ops = [op for op in ops if op[0] != "noinit"]
    mm.set_resize(True)
    for name in ("add", "mark_kho_scratch"):
        perform(mm, model, (name, (ARENA[0], ARENA[1] - ARENA[0])))
    for op in ops:
        perform(mm, model, op)
        compare(mm, model)


@given(st.lists(operations, max_size=60), st.integers(2, 6))
@settings(max_examples=200)
def test_arrays_that_grow_change_nothing(old: Mm, ops: list[tuple[str, object]], regions: int) -> None:
    old.reset(regions)
    model = Model()
    old.set_resize(True)
    for name in ("add", "mark_kho_scratch"):
        perform(old, model, (name, (ARENA[0], ARENA[1] - ARENA[0])))
    for op in ops:
        perform(old, model, op)
        compare(old, model)


def room_needed(regions: list[Region], name: str, start: int, end: int, flags: int) -> int:
    """How many free entries an operation asks for; splitting always asks for two."""
    if start == end:
        return 0
    if name not in ("add", "reserve", "reserve_kern"):
        return 2
    if regions and regions[-1][1] == start and regions[-1][2] == flags:
        return 0
    holes, at = 0, start
    for first, last, _ in regions:
        if first < end and last > start:
            holes += first > at
            at = last
    return holes + (at < end)


@given(st.lists(range_operations, max_size=40), st.integers(2, 5))
@settings(max_examples=300)
def test_a_full_array_refuses_and_changes_nothing(
    mm: Mm, ops: list[tuple[str, tuple[int, int]]], regions: int
) -> None:
    mm.reset(regions)
    model = Model()
    for name, (start, count) in ops:
        before = {which: mm.regions(which) for which in ("memory", "reserved")}
        table = before["memory" if name in MEMORY else "reserved"]
        flags = KERN if name == "reserve_kern" else 0
        room = room_needed(table, name, start * PAGE, (start + count) * PAGE, flags)
        err = mm.error(f"memblock_{name}", start * PAGE, count * PAGE)
        assert err == (-errno.ENOMEM if len(table) + room > regions else 0), (
            f"{name} with {len(table)} of {regions}"
        )
        if err:
            assert {which: mm.regions(which) for which in before} == before, (
                f"{name} failed, but changed something"
            )
        else:
            model.apply(name, start, count)
            compare(mm, model)


# ---- questions ----------------------------------------------------------------------------------------


@given(st.lists(range_operations, max_size=30))
def test_questions(mm: Mm, ops: list[tuple[str, object]]) -> None:
    mm.reset()
    model = Model()
    for op in ops:
        perform(mm, model, op)
    assert mm.call("memblock_phys_mem_size") == len(model.memory) * PAGE
    assert mm.call("memblock_end_of_dram") == (max(model.memory, default=-1) + 1) * PAGE
    kern = [p for p, flags in model.reserved.items() if flags & KERN]
    for limit in (0, 1, 20 * PAGE, 20 * PAGE + 100, 1 << 40):
        expected = sum(min(PAGE, limit - p * PAGE) for p in kern if p * PAGE < limit)
        assert mm.call("memblock_reserved_kern_size", limit) == expected
    for page in range(0, WINDOW, 3):
        assert mm.true("memblock_is_memory", page * PAGE) == (page in model.memory)
        assert mm.true("memblock_is_memory", page * PAGE + PAGE - 1) == (page in model.memory)
        for count in (1, 4):
            expected_reserved = any(p in model.reserved for p in range(page, page + count))
            assert mm.true("memblock_is_region_reserved", page * PAGE, count * PAGE) == expected_reserved


def free_ranges(mm: Mm) -> Iterator[tuple[int, int]]:
    cells = np.zeros(3, np.uint64)
    at = cells.ctypes.data
    while mm.true("memblock_next_free", at, at + 8, at + 16):
        yield int(cells[1]), int(cells[2])


@given(st.lists(st.one_of(range_operations, switches), max_size=30))
def test_free_ranges(mm: Mm, ops: list[tuple[str, object]]) -> None:
    mm.reset()
    model = Model()
    for op in ops:
        perform(mm, model, op)
    found: set[int] = set()
    last = 0
    for start, end in free_ranges(mm):
        assert last <= start < end, "the free ranges do not ascend"
        last = end
        found |= set(range(start // PAGE, end // PAGE))
    wanted = SCRATCH if model.scratch_only else 0
    free = {p for p, flags in model.memory.items() if p not in model.reserved and flags & wanted == wanted}
    assert found == free


# ---- single facts -------------------------------------------------------------------------------------


def test_page_zero_is_never_allocated(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", 0, 2 * PAGE)
    assert mm.call("memblock_phys_alloc_range", PAGE, PAGE, 0, 0) == PAGE
    assert mm.call("memblock_phys_alloc_range", PAGE, PAGE, 0, 0) == 0


def test_allocations_stay_below_the_limit(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", MIB, 8 * MIB)
    mm.set_limit(4 * MIB)
    taken = [mm.call("memblock_phys_alloc_range", MIB, MIB, 0, 0) for _ in range(4)]
    assert sorted(taken) == [0, MIB, 2 * MIB, 3 * MIB]
    assert mm.call("memblock_phys_alloc_range", MIB, MIB, 0, 64 * MIB) == 0, (
        "an end above the limit went beyond it"
    )


def test_bytes_are_exact(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", MIB, MIB)
    mm.error("memblock_reserve", MIB + 100, 48)
    mm.error("memblock_reserve", MIB + 148, 2)
    assert mm.regions("reserved") == [(MIB + 100, MIB + 150, 0)]
    at = mm.call("memblock_phys_alloc_range", 24, 8, MIB, MIB + 160)
    assert at == (MIB if mm.bottom_up else MIB + 72)


def test_memory_from_memblock_is_zero_and_kern(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", MIB, MIB)
    mm.write(MIB, b"\xff" * MIB)
    at = mm.call("memblock_alloc", 2 * PAGE, PAGE) - mm.direct_map
    assert mm.read(at, 2 * PAGE) == bytes(2 * PAGE)
    assert mm.read(at - 16 if at > MIB else at + 2 * PAGE, 16) == b"\xff" * 16
    assert mm.call("memblock_reserved_kern_size", 1 << 60) == 2 * PAGE


def test_a_range_that_wraps_ends_at_the_top(mm: Mm) -> None:
    mm.reset()
    top = (1 << 64) - 1
    assert mm.error("memblock_reserve", top - 100, 1000) == 0
    assert mm.regions("reserved") == [(top - 100, top, 0)]
    assert mm.error("memblock_phys_free", 0, top) == 0
    assert mm.regions("reserved") == []


def test_no_memory(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", MIB, MIB)
    assert mm.call("memblock_phys_alloc_range", 2 * MIB, PAGE, 0, 0) == 0
    assert mm.call("memblock_alloc", 2 * MIB, PAGE) == 0
    assert mm.regions("reserved") == []
    what = np.frombuffer(b"the test\0", np.uint8)
    with pytest.raises(Panic, match=r"no memory for the test: 2097152 bytes aligned to 4096$"):
        mm.call("memblock_alloc_or_panic", 2 * MIB, PAGE, what.ctypes.data)
    mm.call("memblock_set_kho_scratch_only")
    with pytest.raises(Panic, match=r"no memory for the test: .* in scratch$"):
        mm.call("memblock_alloc_or_panic", PAGE, PAGE, what.ctypes.data)


def test_an_alignment_that_is_no_power_of_two_is_a_bug(mm: Mm) -> None:
    mm.reset()
    with pytest.raises(Panic, match=r"BUG"):
        mm.call("memblock_phys_alloc_range", PAGE, 3 * PAGE, 0, 0)


def test_scratch_only_looks_nowhere_else(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", 0, 64 * MIB)
    mm.error("memblock_mark_kho_scratch", 16 * MIB, 4 * MIB)
    mm.call("memblock_set_kho_scratch_only")
    for _ in range(4):
        assert 16 * MIB <= mm.call("memblock_phys_alloc_range", MIB, MIB, 0, 0) < 20 * MIB
    assert mm.call("memblock_phys_alloc_range", PAGE, PAGE, 0, 0) == 0
    mm.call("memblock_clear_kho_scratch_only")
    assert mm.call("memblock_phys_alloc_range", PAGE, PAGE, 0, 0) != 0


def test_firmware_adds_scratch_again_and_it_stays_scratch(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", 16 * MIB, 4 * MIB)
    mm.error("memblock_mark_kho_scratch", 16 * MIB, 4 * MIB)
    mm.error("memblock_add", MIB, 63 * MIB)
    assert mm.regions("memory") == [
        (MIB, 16 * MIB, 0), (16 * MIB, 20 * MIB, SCRATCH), (20 * MIB, 64 * MIB, 0),
    ]  # fmt: skip


def test_a_full_array_still_grows_its_last_region(mm: Mm) -> None:
    mm.reset(2)
    assert mm.error("memblock_reserve", 0, PAGE) == 0
    assert mm.error("memblock_reserve", 4 * PAGE, PAGE) == 0
    assert mm.error("memblock_reserve", 5 * PAGE, PAGE) == 0
    assert mm.error("memblock_reserve", 8 * PAGE, PAGE) == -errno.ENOMEM
    assert mm.regions("reserved") == [(0, PAGE, 0), (4 * PAGE, 6 * PAGE, 0)]


def test_128_regions_and_then_a_larger_array_in_scratch(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", MIB, 64 * MIB)
    mm.error("memblock_mark_kho_scratch", 32 * MIB, 4 * MIB)
    mm.call("memblock_set_kho_scratch_only")
    for i in range(128):
        assert mm.error("memblock_reserve", MIB + 2 * i * PAGE, PAGE) == 0
    assert mm.error("memblock_reserve", 8 * MIB, PAGE) == -errno.ENOMEM, "grew although it may not"
    mm.set_resize(True)
    assert mm.error("memblock_reserve", 8 * MIB, PAGE) == 0
    place = mm.array_place("reserved")
    assert place is not None and 32 * MIB <= place[0] < place[1] <= 36 * MIB
    assert len(mm.regions("reserved")) == 130
    for i in range(2000):
        assert mm.error("memblock_reserve", 9 * MIB + 2 * i * PAGE, PAGE) == 0
    # The arrays in between were freed again.
    kern = [r for r in mm.regions("reserved") if r[2] == KERN]
    assert kern == [(*(mm.array_place("reserved") or (0, 0)), KERN)]


def test_no_scratch_for_a_larger_array(mm: Mm) -> None:
    mm.reset(4)
    mm.error("memblock_add", MIB, 64 * MIB)
    mm.set_resize(True)
    mm.call("memblock_set_kho_scratch_only")
    for i in range(4):
        assert mm.error("memblock_reserve", MIB + 2 * i * PAGE, PAGE) == 0
    before = mm.regions("reserved")
    assert mm.error("memblock_reserve", 8 * MIB, PAGE) == -errno.ENOMEM
    assert mm.error("memblock_reserved_mark_noinit", MIB, PAGE) == -errno.ENOMEM
    assert mm.regions("reserved") == before


def test_a_new_array_is_not_put_where_it_is_needed_for(mm: Mm) -> None:
    mm.reset(2)
    mm.error("memblock_add", MIB, 4 * PAGE)
    mm.set_resize(True)
    mm.error("memblock_reserve", 0, PAGE)
    mm.error("memblock_reserve", 4 * PAGE, PAGE)
    # All but one page of the memory is what is to be reserved.
    assert mm.error("memblock_reserve", MIB, 3 * PAGE) == 0
    assert mm.array_place("reserved") == (MIB + 3 * PAGE, MIB + 4 * PAGE)
    mm.reset(2)
    mm.error("memblock_add", MIB, 4 * PAGE)
    mm.set_resize(True)
    mm.error("memblock_reserve", 0, PAGE)
    mm.error("memblock_reserve", 4 * PAGE, PAGE)
    assert mm.error("memblock_reserve", MIB, 4 * PAGE) == -errno.ENOMEM
    assert mm.regions("reserved") == [(0, PAGE, 0), (4 * PAGE, 5 * PAGE, 0)]


# ---- many ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ranges",
    [
        [(MIB, 0)],
        [(2 * MIB, PAGE), (MIB, PAGE)],
        [(MIB, 2 * PAGE), (MIB + PAGE, PAGE)],
        [(MIB, PAGE), (MIB, PAGE)],
        [((1 << 64) - PAGE, PAGE)],
        [((1 << 64) - PAGE, 2 * PAGE)],
    ],
    ids=["empty", "descending", "overlapping", "twice", "to the last byte", "wraps"],
)
def test_malformed_lists_are_refused(mm: Mm, ranges: list[tuple[int, int]]) -> None:
    mm.reset()
    mm.error("memblock_add", MIB, 64 * MIB)
    mm.set_resize(True)
    assert mm.noinit(ranges) == -errno.EINVAL
    assert mm.regions("reserved") == []


def test_a_list_without_memory_for_the_result(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", MIB, 64 * MIB)
    mm.error("memblock_mark_kho_scratch", 32 * MIB, PAGE)
    mm.call("memblock_set_kho_scratch_only")
    assert mm.noinit([(2 * MIB, PAGE)]) == -errno.ENOMEM, "the array may not grow yet"
    mm.set_resize(True)
    assert mm.noinit([(2 * MIB + 2 * i * PAGE, PAGE) for i in range(1000)]) == -errno.ENOMEM
    assert mm.regions("reserved") == []


def test_262144_ranges(mm: Mm) -> None:
    count = 262_144
    mm.reset()
    mm.error("memblock_add", MIB, 4 * GIB)
    scratch = (3 * GIB, 3 * GIB + 48 * MIB)
    mm.error("memblock_mark_kho_scratch", scratch[0], scratch[1] - scratch[0])
    mm.set_resize(True)
    mm.call("memblock_set_kho_scratch_only")
    kernel = (scratch[0] + 8 * MIB, scratch[0] + 12 * MIB)
    mm.error("memblock_reserve_kern", kernel[0], kernel[1] - kernel[0])
    table = np.zeros(count, REGION)
    table["base"] = 16 * MIB + 2 * PAGE * np.arange(count)
    table["size"] = PAGE
    assert mm.noinit_table(table, count) == 0
    place = mm.array_place("reserved")
    assert place is not None and scratch[0] <= place[0] < place[1] <= scratch[1]
    assert place[1] - place[0] < 8 * MIB
    out = mm.array("reserved")
    noinit = out[out["flags"] == NOINIT]
    assert np.array_equal(noinit["base"], table["base"]) and np.array_equal(noinit["size"], table["size"])
    assert sorted(mm.regions("reserved")[count:]) == sorted([(*kernel, KERN), (*place, KERN)])
    # and it goes on from there
    assert mm.error("memblock_reserve", 16 * MIB + PAGE, PAGE) == 0
    assert mm.regions("reserved")[:3] == [
        (16 * MIB, 16 * MIB + PAGE, NOINIT),
        (16 * MIB + PAGE, 16 * MIB + 2 * PAGE, 0),
        (16 * MIB + 2 * PAGE, 16 * MIB + 3 * PAGE, NOINIT),
    ]


def test_neighbouring_ranges_become_one_region(mm: Mm) -> None:
    mm.reset()
    mm.error("memblock_add", MIB, 64 * MIB)
    mm.set_resize(True)
    assert mm.noinit([(32 * MIB + i * PAGE, PAGE) for i in range(512)]) == 0
    assert (32 * MIB, 34 * MIB, NOINIT) in mm.regions("reserved")


# ---- after memblock -----------------------------------------------------------------------------------


def test_nothing_changes_when_the_page_allocator_has_the_memory(mm: Mm) -> None:
    mm.reset()
    mm.start([(MIB, 128 * MIB, 0)])
    before = mm.regions("memory"), mm.regions("reserved")
    for name in RANGES:
        assert mm.error(f"memblock_{name}", 2 * MIB, PAGE) == -errno.EBUSY
    assert mm.noinit([(2 * MIB, PAGE)]) == -errno.EBUSY
    assert mm.warnings == len(RANGES) + 1
    assert (mm.regions("memory"), mm.regions("reserved")) == before
    with pytest.raises(Panic, match=r"BUG"):
        mm.call("memblock_phys_alloc_range", PAGE, PAGE, 0, 0)
