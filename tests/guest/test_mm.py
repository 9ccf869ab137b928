"""The page allocator and the slab allocator on the host: any sequence of allocations, and each abuse that
has to end in a BUG. What needs page tables (vmalloc, the array of struct pages) is tested in the kernel
itself, by kernels/mm/mm_test.c.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guest.mm_host import (
    COMP,
    GIB,
    MAX_ORDER,
    MIB,
    MOVABLE,
    NOINIT,
    PAGE,
    PG_BUDDY,
    PG_HEAD,
    PG_TAIL,
    SCRATCH,
    ZERO,
    Mm,
    Panic,
    Region,
    load,
)

CMA = 2
SMALL: tuple[Region, ...] = ((MIB, 16 * MIB, 0), (16 * MIB, 32 * MIB, SCRATCH), (32 * MIB, 63 * MIB, 0))
"""a machine of which a quarter is scratch"""
CHUNK = 64 * MIB


@pytest.fixture(scope="module", params=[False, True], ids=["old", "new"])
def library(request: pytest.FixtureRequest) -> Mm:
    return load(request.param)


@pytest.fixture
def mm(library: Mm) -> Mm:
    library.reset()
    library.start(SMALL)
    return library


def in_scratch(pfn: int) -> bool:
    return 16 * MIB <= pfn * PAGE < 32 * MIB


# ---- giving -------------------------------------------------------------------------------------------


def pages(regions: Sequence[Region]) -> int:
    return sum(end // PAGE - -(-start // PAGE) for start, end, _ in regions)


def test_all_memory_is_free_and_managed(mm: Mm) -> None:
    expected = pages(SMALL) - len(range(0, sum(e - s for s, e, f in mm.regions("reserved")), PAGE))
    assert mm.free_pages == mm.call("nr_managed_pages") == expected
    assert mm.call("nr_free_cma_pages") == 16 * MIB // PAGE - sum(
        (e - s + PAGE - 1) // PAGE for s, e, _ in mm.regions("reserved") if in_scratch(s // PAGE)
    )
    mm.call("check_free_lists")


def test_contents_are_not_touched_by_giving(library: Mm) -> None:
    library.reset()
    library.write(MIB, b"\x5a" * (62 * MIB))
    library.start(SMALL)
    reserved = library.regions("reserved")
    data = library.read(MIB, 62 * MIB)
    for start, end, _ in reserved:
        data = data[: start - MIB] + b"\x5a" * (end - start) + data[end - MIB :]
    assert data == b"\x5a" * (62 * MIB), "giving memory to the allocator wrote to it"


def test_large_memory_stays_deferred_until_it_is_needed(library: Mm) -> None:
    library.reset()
    library.start([(MIB, 2 * GIB, 0), (4 * GIB, 66 * GIB, 0)])
    total = (2 * GIB - MIB + 62 * GIB) // PAGE
    reserved = sum(e - s for s, e, _ in library.regions("reserved"))
    assert library.free_pages == library.call("nr_managed_pages") == total - -(-reserved // PAGE)

    def given() -> int:
        return (library.free_pages - library.call("host_deferred_pages")) * PAGE

    # A stretch ends with a whole block.
    assert CHUNK <= given() < CHUNK + 4 * MIB
    first = library.alloc(0)
    assert first is not None and first * PAGE >= 4 * GIB, "the high zone comes first"
    assert 2 * CHUNK - PAGE <= given() < 2 * CHUNK + 8 * MIB
    # A page of each deferred order-10 block would be 16,000 writes; nothing of it was looked at.
    assert library.read_page(66 * GIB // PAGE - 1024) == (0, 0, 0, 0)
    taken = [library.alloc(MAX_ORDER) for _ in range(40)]
    assert None not in taken and len(set(taken)) == 40
    assert library.free_pages == library.call("nr_managed_pages") - 1 - 40 * 1024
    library.call("check_free_lists")


def test_what_is_reserved_is_never_given(library: Mm) -> None:
    library.reset()
    reserved = [(8 * MIB + 2 * i * PAGE, 8 * MIB + (2 * i + 1) * PAGE, NOINIT) for i in range(100)]
    library.set_resize(True)
    library.start(SMALL, [*reserved, (40 * MIB + 100, 40 * MIB + 200, 0)])
    taken = set()
    while (pfn := library.alloc(0, MOVABLE)) is not None:
        taken.add(pfn)
    for start, end, _ in library.regions("reserved"):
        assert not taken & set(range(start // PAGE, -(-end // PAGE))), f"{start:#x}..{end:#x} is reserved"
    assert library.free_pages == 0
    assert len(taken) == library.call("nr_managed_pages")
    library.call("check_free_lists")


def test_memory_that_comes_late(library: Mm) -> None:
    library.reset()
    library.start(SMALL, [(8 * MIB, 12 * MIB, 0)])
    managed = library.call("nr_managed_pages")
    library.call("free_pages_core", 8 * MIB // PAGE, MAX_ORDER)
    assert library.call("nr_managed_pages") == managed + 1024
    library.call("check_free_lists")
    with pytest.raises(Panic, match=r"BUG: giving a page that is no memory or in use"):
        library.call("free_pages_core", 8 * MIB // PAGE, MAX_ORDER)


@pytest.mark.parametrize("phys", [4 * MIB, 33 * MIB])
def test_memory_that_is_there_cannot_be_given(mm: Mm, phys: int) -> None:
    with pytest.raises(Panic, match=r"BUG: giving a page that"):
        mm.call("free_pages_core", phys // PAGE, 0)


# ---- any sequence -------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("alloc"),
            st.integers(0, MAX_ORDER),
            st.sampled_from([0, MOVABLE, COMP, COMP | MOVABLE, ZERO]),
        ),
        st.tuples(st.just("free"), st.integers(0, 1 << 16), st.just(0)),
        st.tuples(st.just("split"), st.integers(0, 1 << 16), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
@settings(max_examples=150)
def test_any_sequence_of_allocations(library: Mm, ops: list[tuple[str, int, int]]) -> None:
    """Blocks are aligned, disjoint, in the right memory, filled as promised, and all comes back together."""
    mm = library
    mm.reset()
    mm.start(SMALL)
    before = mm.free_pages
    largest = [mm.alloc(MAX_ORDER) for _ in range(3)]
    for pfn in largest:
        assert pfn is not None
        mm.free(pfn, MAX_ORDER)
    held: list[tuple[int, int, int]] = []
    owner: dict[int, int] = {}
    for what, n, gfp in ops:
        if what == "alloc":
            pfn = mm.alloc(n, gfp)
            if pfn is None:
                continue
            assert pfn % (1 << n) == 0, f"a block of order {n} at page {pfn:#x}"
            for p in range(pfn, pfn + (1 << n)):
                assert p not in owner, f"page {p:#x} was given out twice"
                owner[p] = pfn
                if not gfp & MOVABLE:
                    assert not in_scratch(p), f"unmovable page {p:#x} in scratch"
            assert mm.read(pfn * PAGE, 64) == (bytes(64) if gfp & ZERO else b"\xcc" * 64)
            assert mm.read(((pfn + (1 << n)) * PAGE) - 64, 64) == (bytes(64) if gfp & ZERO else b"\xcc" * 64)
            flags = mm.read_page(pfn)[0]
            assert flags == (PG_HEAD if gfp & COMP and n else 0)
            held.append((pfn, n, gfp))
        elif held:
            pfn, order, gfp = held.pop(n % len(held))
            if what == "split" and not gfp & COMP:
                mm.call("split_page", mm.page(pfn), order)
                held += [(p, 0, gfp) for p in range(pfn, pfn + (1 << order))]
                continue
            mm.free(pfn, order)
            assert mm.read(pfn * PAGE, 64) == b"\xdd" * 64
            for p in range(pfn, pfn + (1 << order)):
                del owner[p]
        assert mm.free_pages == before - len(owner)
    mm.call("check_free_lists")
    for pfn, order, _ in held:
        mm.free(pfn, order)
    mm.call("check_free_lists")
    assert mm.free_pages == before
    again = [mm.alloc(MAX_ORDER) for _ in range(3)]
    assert None not in again, "memory stayed in pieces although all of it is free"


def test_the_movable_use_scratch_the_unmovable_never(mm: Mm) -> None:
    free, cma = mm.free_pages, mm.call("nr_free_cma_pages")
    unmovable = []
    while (pfn := mm.alloc(0)) is not None:
        assert not in_scratch(pfn)
        unmovable.append(pfn)
    assert len(unmovable) == free - cma, "not all memory outside scratch could be used"
    movable = []
    while (pfn := mm.alloc(0, MOVABLE)) is not None:
        assert in_scratch(pfn)
        movable.append(pfn)
    assert len(movable) == cma
    for pfn in unmovable + movable:
        mm.free(pfn, 0)
    assert (mm.free_pages, mm.call("nr_free_cma_pages")) == (free, cma)
    mm.call("check_free_lists")


def test_scratch_serves_first_when_it_is_most_of_what_is_free(library: Mm) -> None:
    library.reset()
    library.start([(MIB, 40 * MIB, 0), (40 * MIB, 128 * MIB, SCRATCH)])
    pfn = library.alloc(0, MOVABLE)
    assert pfn is not None and pfn * PAGE >= 40 * MIB


def test_scratch_and_its_neighbours_do_not_merge(library: Mm) -> None:
    """A boundary in the middle of an order-10 block; what is scratch stays scratch."""
    library.reset()
    library.start([(MIB, 18 * MIB, 0), (18 * MIB, 30 * MIB, SCRATCH), (30 * MIB, 63 * MIB, 0)])
    library.call("check_free_lists")
    for order in (MAX_ORDER, 9):
        while (pfn := library.alloc(order)) is not None:
            assert not 18 * MIB - (PAGE << order) < pfn * PAGE < 30 * MIB, (
                f"order {order} reaches into scratch"
            )
    assert library.call("nr_free_cma_pages") * PAGE > 11 * MIB


def test_a_pageblock_belongs_to_who_broke_it_up(mm: Mm) -> None:
    mine, theirs = mm.alloc(0), mm.alloc(0, MOVABLE)
    assert mine is not None and theirs is not None
    kinds = [mm.call("get_pageblock_migratetype", pfn) for pfn in (mine, theirs)]
    assert kinds == [0, 1], "an unmovable and a movable page share a pageblock without need"
    mm.free(mine, 0)
    assert mm.call("get_pageblock_migratetype", mine) == 1, "nobody has this pageblock any more"


def test_the_movable_take_what_the_unmovable_left(mm: Mm) -> None:
    assert mm.alloc(0) is not None
    while mm.alloc(0, MOVABLE) is not None:
        pass
    assert mm.free_pages == 0
    mm.call("check_free_lists")


def test_only_whole_pageblocks_are_scratch(library: Mm) -> None:
    library.reset()
    library.start([(MIB, 17 * MIB, 0), (17 * MIB, 29 * MIB, SCRATCH), (29 * MIB, 63 * MIB, 0)])
    kinds = [library.call("get_pageblock_migratetype", mib * MIB // PAGE) for mib in range(14, 32, 2)]
    assert kinds == [1, 1, CMA, CMA, CMA, CMA, CMA, 1, 1]
    library.call("check_free_lists")


# ---- abuses -------------------------------------------------------------------------------------------


def taken(mm: Mm, order: int = 0, gfp: int = 0) -> int:
    pfn = mm.alloc(order, gfp)
    assert pfn is not None
    return pfn


@pytest.mark.parametrize("order", [0, 3, MAX_ORDER])
@pytest.mark.parametrize("gfp", [0, COMP])
def test_freeing_twice(mm: Mm, order: int, gfp: int) -> None:
    pfn = taken(mm, order, gfp)
    mm.free(pfn, order)
    with pytest.raises(
        Panic, match=r"BUG: a page is used or freed that (is free already|belongs to nobody: freed twice)"
    ):
        mm.free(pfn, order)


def test_freeing_what_was_never_allocated(mm: Mm) -> None:
    with pytest.raises(Panic, match=r"BUG: a page is used or freed that belongs to nobody"):
        mm.free(20 * MIB // PAGE + 1, 0)


def test_freeing_reserved_memory(mm: Mm) -> None:
    start = mm.regions("reserved")[0][0]
    with pytest.raises(Panic, match=r"BUG: .* belongs to nobody: reserved"):
        mm.free(start // PAGE, 0)


@pytest.mark.parametrize("pfn", [0, 63 * MIB // PAGE, 1 << 30])
def test_freeing_what_is_no_memory(mm: Mm, pfn: int) -> None:
    if pfn < 80 * GIB // PAGE:
        with pytest.raises(Panic, match=r"BUG: freeing or using what is no page"):
            mm.free(pfn, 0)
    with pytest.raises(Panic, match=r"BUG: .* outside the direct map|what is no page"):
        mm.call("free_pages", mm.direct_map + pfn * PAGE, 0)


@pytest.mark.parametrize("gfp", [0, COMP])
@pytest.mark.parametrize("other", [0, 2, 4])
def test_freeing_in_another_order(mm: Mm, gfp: int, other: int) -> None:
    with pytest.raises(Panic, match=r"BUG: freeing a block in another order"):
        mm.free(taken(mm, 3, gfp), other)


def test_freeing_the_middle_of_a_block(mm: Mm) -> None:
    with pytest.raises(Panic, match=r"BUG: .* belongs to nobody"):
        mm.free(taken(mm, 3) + 2, 0)
    mm.reset()
    mm.start(SMALL)
    with pytest.raises(Panic, match=r"BUG: freeing a part of a folio"):
        mm.free(taken(mm, 3, COMP) + 2, 0)


def test_a_block_with_a_page_that_is_still_in_use(mm: Mm) -> None:
    pfn = taken(mm, 2)
    mm.call("split_page", mm.page(pfn), 2)
    mm.call("get_page", mm.page(pfn))
    mm.free(pfn, 0)
    with pytest.raises(Panic, match=r"BUG"):
        mm.call("split_page", mm.page(pfn), 2)


def test_using_a_free_page(mm: Mm) -> None:
    pfn = taken(mm)
    mm.free(pfn, 0)
    for function in ("get_page", "put_page"):
        with pytest.raises(Panic, match=r"BUG: a page is used or freed"):
            mm.call(function, mm.page(pfn))


def test_references(mm: Mm) -> None:
    before = mm.free_pages
    pfn = taken(mm, 4, COMP)
    assert mm.read_page(pfn + 5)[0] == PG_TAIL
    mm.call("get_page", mm.page(pfn + 5))
    assert mm.pfn(mm.call("page_folio", mm.page(pfn + 5))) == pfn
    mm.call("folio_put", mm.page(pfn))
    assert mm.free_pages == before - 16
    mm.call("put_page", mm.page(pfn + 9))
    assert mm.free_pages == before
    assert mm.read_page(pfn + 9) == (0, 0, 0, 0)
    mm.call("check_free_lists")


def test_blocks_of_another_kernel_may_be_larger_than_the_largest_order(library: Mm) -> None:
    library.reset()
    library.start(SMALL, [(32 * MIB, 48 * MIB, NOINIT)])
    before, pfn = library.free_pages, 32 * MIB // PAGE
    library.call("prep_compound_page", library.page(pfn), 12)
    library.call("adjust_managed_page_count", library.page(pfn), 4096)
    library.call("folio_put", library.page(pfn))
    assert library.free_pages == before + 4096
    library.call("check_free_lists")


@pytest.mark.parametrize("order", [MAX_ORDER + 1, 63])
def test_orders_that_do_not_exist(mm: Mm, order: int) -> None:
    assert mm.alloc(order) is None


def corrupt(mm: Mm, pfn: int, offset: int, value: int, size: int = 4) -> None:
    """Writes to a struct page of the hosted release (tests/guest/hosted_release.h)."""
    mm.write(mm.page(pfn) + offset - mm.direct_map, value.to_bytes(size, "little"))


def test_freeing_a_page_that_a_file_has(mm: Mm) -> None:
    pfn = taken(mm)
    corrupt(mm, pfn, 32, 0x1234, 8)
    with pytest.raises(Panic, match=r"BUG: freeing a page that a file still has"):
        mm.free(pfn, 0)


@pytest.mark.parametrize(
    ("offset", "value", "size"),
    [(0, PG_BUDDY | PG_HEAD, 4), (4, 1, 4), (8, 5, 8), (56, 3, 1)],
    ids=["flags", "refcount", "private", "order"],
)
def test_verification_finds_a_corrupted_free_page(mm: Mm, offset: int, value: int, size: int) -> None:
    pfn = taken(mm, 9)
    mm.free(pfn, 9)
    head = next(p for p in range(pfn & -1024, pfn + 1) if mm.read_page(p)[0] & PG_BUDDY)
    mm.call("check_free_lists")
    corrupt(mm, head, offset, value, size)
    with pytest.raises(Panic, match=r"BUG: free lists"):
        mm.call("check_free_lists")


def test_verification_finds_a_page_in_use_inside_a_free_block(mm: Mm) -> None:
    pfn = taken(mm, 9)
    mm.free(pfn, 9)
    corrupt(mm, pfn + 7, 4, 1)
    with pytest.raises(Panic, match=r"BUG: free lists"):
        mm.call("check_free_lists")


# ---- slab ---------------------------------------------------------------------------------------------


def test_kmalloc_before_there_is_a_slab(library: Mm) -> None:
    library.reset()
    with pytest.raises(Panic, match=r"BUG"):
        library.call("kmalloc", 16, 0)


@given(st.lists(st.one_of(st.integers(1, 5000), st.integers(-(1 << 16), -1)), max_size=300))
@settings(max_examples=60)
def test_objects_are_disjoint_and_aligned(library: Mm, ops: list[int]) -> None:
    """Positive: an allocation of this size. Negative: one of the objects is freed."""
    mm = library
    mm.reset()
    mm.start(SMALL)
    held: dict[int, int] = {}
    for n in ops:
        if n > 0:
            p = mm.call("kmalloc", n, 0) - mm.direct_map
            room = max(16, 1 << (n - 1).bit_length())
            assert p % min(room, PAGE) == 0
            for other, size in held.items():
                assert p + room <= other or other + size <= p, "two objects overlap"
            assert mm.read(p, n) == b"\xcc" * n
            mm.write(p, b"\x11" * n)
            held[p] = room
        elif held:
            p = sorted(held)[n % len(held)]
            mm.call("kfree", mm.direct_map + p)
            assert mm.read(p, 16) == b"\xdd" * 16
            del held[p]
    for p in held:
        mm.call("kfree", mm.direct_map + p)
    mm.call("check_free_lists")


@pytest.mark.parametrize("size", [8, 16, 100, 2048, 2049, 4096, 4 * MIB])
def test_kfree_twice(mm: Mm, size: int) -> None:
    p = mm.call("kmalloc", size, 0)
    neighbour = mm.call("kmalloc", size, 0)  # keeps the slab
    assert p and neighbour
    mm.call("kfree", p)
    with pytest.raises(Panic, match=r"BUG: .*twice"):
        mm.call("kfree", p)


@pytest.mark.parametrize("size", [16, 64, 2048, 4096, 65536])
def test_kfree_of_the_middle(mm: Mm, size: int) -> None:
    p = mm.call("kmalloc", size, 0)
    with pytest.raises(Panic, match=r"BUG: .*no object|BUG: .*did not return"):
        mm.call("kfree", p + 8)


def test_kfree_of_a_page(mm: Mm) -> None:
    with pytest.raises(Panic, match=r"BUG: .*did not return"):
        mm.call("kfree", mm.call("get_free_pages", 0, 0))
    with pytest.raises(Panic, match=r"BUG: virt_to_phys"):
        mm.call("kfree", 0x1234)


def test_freeing_a_slab_as_pages(mm: Mm) -> None:
    p = mm.call("kmalloc", 64, 0)
    with pytest.raises(Panic, match=r"BUG: a page of the slab allocator"):
        mm.call("free_pages", p & -PAGE, 0)
    p = mm.call("kmalloc", 4096, 0)
    with pytest.raises(Panic, match=r"BUG: a page of the slab allocator"):
        mm.call("free_pages", p, 0)


def test_an_object_of_another_cache(mm: Mm) -> None:
    name = mm.direct_map + 32 * MIB
    a, b = mm.call("kmem_cache_create", name, 40, 0), mm.call("kmem_cache_create", name, 40, 64)
    p = mm.call("kmem_cache_alloc", a, ZERO)
    assert p % 8 == 0 and mm.call("kmem_cache_alloc", b, 0) % 64 == 0
    with pytest.raises(Panic, match=r"BUG: .*not of this cache"):
        mm.call("kmem_cache_free", b, p)
    with pytest.raises(Panic, match=r"BUG: .*not of this cache"):
        mm.call("kmem_cache_free", b, mm.call("get_free_pages", 0, 0))


def test_sizes_that_cannot_be(mm: Mm) -> None:
    assert mm.call("kmalloc", 4 * MIB + 1, 0) == 0
    assert mm.call("kmalloc", 1 << 60, 0) == 0
    assert mm.call("kmem_cache_create", mm.direct_map, 8 * MIB, 0) == 0
    with pytest.raises(Panic, match=r"BUG"):
        mm.call("kmem_cache_create", mm.direct_map, 0, 0)
    with pytest.raises(Panic, match=r"BUG"):
        mm.call("kmem_cache_create", mm.direct_map, 16, 24)


def test_slabs_go_back_when_they_are_empty(mm: Mm) -> None:
    mm.call("kfree", mm.call("kmalloc", 512, 0))
    before = mm.free_pages
    objects = [mm.call("kmalloc", 512, 0) for _ in range(1000)]
    assert mm.free_pages < before - 100
    for p in objects:
        mm.call("kfree", p)
    assert before - mm.free_pages <= 3, "more stayed than pages for the structs of 125 slabs"


def test_one_empty_slab_is_kept(mm: Mm) -> None:
    mm.call("kfree", mm.call("kmalloc", 512, 0))
    before = mm.free_pages
    for _ in range(3):
        p = mm.call("kmalloc", 512, 0)
        assert mm.free_pages == before
        mm.call("kfree", p)
        assert mm.free_pages == before


def test_no_memory_for_a_slab(mm: Mm) -> None:
    pages_taken = []
    while (pfn := mm.alloc(0)) is not None:
        pages_taken.append(pfn)
    assert mm.call("kmalloc", 32, 0) == 0
    assert mm.call("kmalloc", 8192, 0) == 0
    for pfn in pages_taken:
        mm.free(pfn, 0)
    assert mm.call("kmalloc", 32, 0)
    mm.call("check_free_lists")
