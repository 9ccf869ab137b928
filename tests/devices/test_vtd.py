"""VT-d: DMA translation, faults to the bit, invalidation, and what stale cache entries do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.devices import vtd
from emu.devices.vtd_tables import FAULT_REASONS
from emu.dma import NO_RAM, NOWHERE
from tests.devices.dma_rig import (
    CONTEXTS,
    DEVICE,
    DOMAIN,
    FECTL,
    FRCD,
    FSTS,
    GCMD,
    GSTS,
    IQA,
    IQH,
    IQT,
    IRE,
    QIE,
    QUEUE,
    ROOT,
    SRTP,
    STATUS,
    TE,
    Remapping,
)  # fmt: skip

PAGE2M, PAGE1G = 1 << 21, 1 << 30
HIGH = 1 << 32


@pytest.fixture
def r() -> Remapping:
    return Remapping()


def simple(r: Remapping, levels: int = 3) -> int:
    """A domain with one page: 0x5000 → 0x80000, readable and writable. The place of its entry."""
    top = r.domain(levels=levels)
    where = r.map(top, levels, 0x5000, 0x80003)
    r.translate_on()
    return where


# --- registers ---


def test_capabilities_are_consistent(r: Remapping) -> None:
    cap, ecap = r.r(8, 8), r.r(0x10, 8)
    assert r.r(0) == 0x10
    assert (cap & 7, cap >> 8 & 31, cap >> 16 & 63) == (6, 6, 47), "domain ids, widths"
    assert cap >> 34 & 15 == 3, "2 MiB and 1 GiB pages"
    assert not cap >> 7 & 1, "caching mode"
    assert (cap >> 24 & 0x3FF) * 16 == FRCD and (cap >> 40 & 0xFF) + 1 == vtd.FAULTS
    assert cap >> 39 & 1 and cap >> 48 & 63 == 18
    assert not cap >> 5 & 3 and not cap >> 59 & 1, "no protected regions, no posted interrupts"
    assert (ecap >> 8 & 0x3FF) * 16 == 0x100, "IVA and IOTLB"
    assert [ecap >> bit & 1 for bit in (0, 1, 2, 3, 4, 6, 7, 43)] == [1, 1, 0, 1, 1, 1, 1, 0]


def test_registers_at_power_on(r: Remapping) -> None:
    """All 0, but what is offered, and that both events are masked."""
    found = {at: r.r(at) for at in range(0, 0x1000, 4) if r.r(at)}
    offered = {at: r.r(at) for at in (0x8, 0xC, 0x10, 0x14) if r.r(at)}
    assert found == {0: 0x10, **offered, 0x38: 1 << 31, 0xA0: 1 << 31}
    r.command(IRE)
    assert r.unit.remap(DEVICE, 0xFEE00010, 0, 0) == (None, 0x22), "a table of two entries at 0"
    assert r.unit.remap(DEVICE, 0xFEE00010 | 2 << 5, 0, 0) == (None, 0x21)


def test_halves_of_wide_registers(r: Remapping) -> None:
    r.w(0x20, 0x12345000)
    r.w(0x24, 0x9)
    assert r.r(0x20, 8) == 0x9_1234_5000
    assert (r.r(8) | r.r(12) << 32) == r.r(8, 8)
    r.w(0x38, 0x0000_4041_0000_0000, 8)
    assert (r.r(0x38), r.r(0x3C)) == (0, 0x4041)


@pytest.mark.parametrize(
    ("offset", "written", "reads"),
    [
        (0x20, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_F000),
        (0x28, 0x7FFF_FFFF_FFFF_FFFF, 0x6000_0003_FFFF_FFFF),
        (0x38, 0xFFFF_FFFF_FFFF_FFFF, 0x0000_FFFF_8000_0000),
        (0x40, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFC),
        (0x80, 0xFFFF_FFFF_FFFF_FFFF, 0),
        (0x88, 0xFFFF_FFFF_FFFF_FFFF, 0x7FFF0),
        (0x90, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_F007),
        (0xA0, 0xFFFF_FFFF_FFFF_FFFF, 0x0000_FFFF_8000_0000),
        (0xA8, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFC),
        (0xB0, 0xFFFF_FFFF_FFFF_FFFF, 0),
        (0xB8, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_F80F),
        (0x100, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_F07F),
        (0x108, 0x7FFF_FFFF_FFFF_FFFF, 0x3003_FFFF_0000_0000),
        (0x200, 0xFFFF_FFFF_FFFF_FFFF, 0),
        (0x208, 0xFFFF_FFFF_FFFF_FFFF, 0),
        (0x64, 0xFFFF_FFFF, 0),
        (0xFF8, 0xFFFF_FFFF_FFFF_FFFF, 0),
    ],
)
def test_which_bits_can_be_written(r: Remapping, offset: int, written: int, reads: int) -> None:
    size = 4 if offset == 0x64 else 8
    r.w(offset, written, size)
    assert r.r(offset, size) == reads


def test_odd_accesses_do_nothing(r: Remapping) -> None:
    for offset, size in ((0x20, 2), (0x21, 4), (0x24, 8), (0x20, 1)):
        r.w(offset, 0xFF000, size)
        assert r.r(offset, size) == 0
    assert r.r(0x20, 8) == 0


def test_a_pointer_is_in_force_when_it_is_set(r: Remapping) -> None:
    r.w(0x20, ROOT, 8)
    r.domain()
    r.command(TE)
    assert r.dma(0x5000) is None, "the root table is still at 0"
    r.command(SRTP)
    r.w(0x20, 0, 8)
    assert r.dma(0x5000) is None
    assert [high >> 32 & 0xFF for _, high in r.records()] == [0x1, 0x6]


def test_enables_follow_what_was_written_last(r: Remapping) -> None:
    r.command(TE)
    r.w(GCMD, QIE)
    assert r.r(GSTS) == QIE
    assert r.r(GCMD) == 0, "write only"


def test_power_on_translates_nothing(r: Remapping) -> None:
    assert r.dma(0x5000) == 0x5000
    simple(r)
    r.dma(0x5000)
    r.unit.reset(0)
    assert r.dma(0x5000) == 0x5000 and r.r(GSTS) == 0
    assert r.unit.s == vtd.VtdState()


# --- translation ---


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_every_page_size_and_width(r: Remapping, levels: int, at: int) -> None:
    """The last page of the domain, mapped to the first above 4 GiB; every byte offset is kept."""
    shift = 12 + 9 * (at - 1)
    iova = (1 << 12 + 9 * levels) - (1 << shift)
    target = HIGH if at < 3 else 4 * PAGE1G
    top = r.domain(levels=levels)
    r.map(top, levels, iova, target | 3 | (0x80 if at > 1 else 0), at)
    r.translate_on()
    for offset in (0, 1, 0xFFF, (1 << shift) - 1 if at < 3 else 0xFF_FFFF):
        expected = HIGH + offset
        assert r.dma(iova + offset) == (expected if expected < HIGH + r.ram.SIZE else None)
    assert r.unit.translate(DEVICE, iova + 5, True, 0) == (target + 5, (1 << shift) - 5, 0)
    below = iova - 1
    assert r.dma(below) is None and r.records()[-1][1] >> 32 & 0xFF == 0x6


def test_bit_7_means_nothing_in_a_page_of_4_kib(r: Remapping) -> None:
    top = r.domain()
    r.map(top, 3, 0x5000, 0x80083)
    r.translate_on()
    assert r.dma(0x5123) == 0x80123


@pytest.mark.parametrize("ignored", [1 << 2, 1 << 5, 1 << 9, 1 << 11, 1 << 52, 1 << 61, 1 << 63])
def test_ignored_bits_of_a_page(r: Remapping, ignored: int) -> None:
    top = r.domain()
    r.map(top, 3, 0x5000, 0x80003 | ignored)
    r.translate_on()
    assert r.dma(0x5000, write=True) == 0x80000


@pytest.mark.parametrize("bit", [2, 3, 4, 5, 6, 8, 9, 10, 52, 57, 61, 63])
@pytest.mark.parametrize("level", [2, 3, 4])
def test_ignored_bits_of_a_table(r: Remapping, level: int, bit: int) -> None:
    top = r.domain(levels=4)
    r.map(top, 4, 0x5000, 0x80003)
    table = top
    for _ in range(4 - level):
        table = int.from_bytes(r.ram.get(table, 8), "little") & ~0xFFF
    r.ram.put64(table, int.from_bytes(r.ram.get(table, 8), "little") | 1 << bit)
    r.translate_on()
    assert r.dma(0x5000, write=True) == 0x80000


def test_pass_through(r: Remapping) -> None:
    r.context(DEVICE, 2 << 2 | 1, DOMAIN << 8 | 2)
    r.translate_on()
    assert r.dma(0x1234) == 0x1234
    assert r.dma(HIGH + 5, write=True) == HIGH + 5
    assert r.dma(1 << 48) is None and r.records()[0][1] >> 32 & 0xFF == 4


def test_permissions_of_all_levels_count(r: Remapping) -> None:
    top = r.domain()
    r.map(top, 3, 0x5000, 0x80003)
    r.map(top, 3, 0x6000, 0x81001)
    r.map(top, 3, 0x7000, 0x82002)
    r.map(top, 3, PAGE1G, 0x83003)
    r.ram.put64(top + 8, int.from_bytes(r.ram.get(top + 8, 8), "little") & ~2)
    r.translate_on()
    seen = {(iova, write): r.dma(iova, write) is not None for iova in (0x5000, 0x6000, 0x7000, PAGE1G)
            for write in (False, True)}  # fmt: skip
    assert seen == {
        (0x5000, False): True, (0x5000, True): True, (0x6000, False): True, (0x6000, True): False,
        (0x7000, False): False, (0x7000, True): True, (PAGE1G, False): True, (PAGE1G, True): False,
    }  # fmt: skip
    assert [high >> 32 & 0xFF for _, high in r.records()] == [5, 6, 5]


def test_devices_of_one_domain_share_pages_and_others_do_not(r: Remapping) -> None:
    top = r.domain(source=8, domain=1)
    r.map(top, 3, 0x5000, 0x80003)
    r.domain(source=16, domain=1, top=top)
    other = r.domain(source=24, domain=2)
    r.map(other, 3, 0x5000, 0x90003)
    r.translate_on()
    assert [r.dma(0x5000, source=s) for s in (8, 16, 24)] == [0x80000, 0x80000, 0x90000]
    assert len(r.unit.s.pages["1"]) == 1


def test_a_request_is_cut_where_its_translation_changes(r: Remapping) -> None:
    top = r.domain()
    for i, target in enumerate((0x90001, 0x80003, 0, 0xFFFFF000 | 3)):
        r.map(top, 3, 0x5000 + 0x1000 * i, target)
    r.map(top, 3, PAGE2M, HIGH | 0x83, 2)
    r.translate_on()
    r.ram.put(0x90FF0, bytes(range(16)))
    r.ram.put(0x80000, b"\x77" * 4096)
    data = r.port.read(DEVICE, 0x5FF0, 16 + 3 * 4096, 5)
    assert data == bytes(range(16)) + b"\x77" * 4096 + b"\xff" * 8192
    r.port.write(DEVICE, PAGE2M + 100, bytes(9000), 6)
    fields = [tuple(int(x) for x in row) for row in r.log.records().tolist()]
    assert fields == [
        (5, 0x5FF0, 0x90FF0, 16, DEVICE, 0, 0),
        (5, 0x6000, 0x80000, 4096, DEVICE, 0, 0),
        (5, 0x7000, NOWHERE, 4096, DEVICE, 0, 6),
        (5, 0x8000, 0xFFFFF000, 4096, DEVICE, 0, NO_RAM),
        (6, PAGE2M + 100, HIGH + 100, 9000, DEVICE, 1, 0),
    ]


def test_observers_see_memory_before_the_write(r: Remapping) -> None:
    simple(r)
    seen = []
    r.port.observers.append(lambda *piece: seen.append(r.ram.get(0x80000, 1)))
    r.port.write(DEVICE, 0x5000, b"\x11", 0)
    assert seen == [b"\0"] and r.ram.get(0x80000, 1) == b"\x11"


def test_without_translation_only_ram_answers(r: Remapping) -> None:
    end = r.ram.SIZE
    r.ram.put(end - 2, b"ab")
    assert r.port.read(DEVICE, end - 2, 6, 0) == b"ab\xff\xff\xff\xff"
    r.port.write(DEVICE, end - 1, b"xyz", 0)
    assert r.ram.get(end - 2, 2) == b"ax"
    assert r.port.read(DEVICE, (1 << 64) - 2, 4, 0) == b"\xff\xff\0\0", "addresses wrap"


# --- faults ---


def _root_absent(r: Remapping) -> None:
    r.ram.put64(ROOT, CONTEXTS, 0)


def _no_root_table(r: Remapping) -> None:
    r.w(0x20, 0x8000_0000, 8)
    r.command(SRTP)


def _no_context_table(r: Remapping) -> None:
    r.ram.put64(ROOT, 0x8000_0000 | 1, 0)


def _root(low: int, high: int = 0) -> Callable[[Remapping], None]:
    return lambda r: r.ram.put64(ROOT, CONTEXTS | 1 | low, high)


def _context(low: int, high: int) -> Callable[[Remapping], None]:
    return lambda r: r.context(DEVICE, low, high)


def _leaf(entry: int, iova: int = 0x5000, at: int = 1) -> Callable[[Remapping], None]:
    return lambda r: (r.map(0x20000, 3, iova, entry, at), None)[1]


GOOD = 0x20000 | 1
GOOD_HIGH = DOMAIN << 8 | 1
FAULTS = [
    # reason, what is wrong, the access (iova, write)
    (0x1, _root_absent, (0x5000, False)),
    (0x2, _context(0x20000, GOOD_HIGH), (0x5000, True)),
    (0x3, _context(GOOD | 1 << 2, GOOD_HIGH), (0x5000, False)),
    (0x3, _context(GOOD | 3 << 2, GOOD_HIGH), (0x5000, False)),
    (0x3, _context(GOOD, DOMAIN << 8), (0x5000, False)),
    (0x3, _context(GOOD, DOMAIN << 8 | 3), (0x5000, False)),
    (0x4, None, (1 << 39, True)),
    (0x4, None, ((1 << 64) - 0x1000, False)),
    (0x5, _leaf(0x80001), (0x5000, True)),
    (0x6, _leaf(0x80002), (0x5000, False)),
    (0x5, _leaf(0), (0x5000, True)),
    (0x6, _leaf(0, at=3), (0x5000, False)),
    (0x7, _leaf(0x8000_0003, at=2), (0x5000, False)),
    (0x7, _context(0x8000_0001, GOOD_HIGH), (0x5000, False)),
    (0x8, _no_root_table, (0x5000, False)),
    (0x9, _no_context_table, (0x5000, True)),
    (0xA, _root(2), (0x5000, False)),
    (0xA, _root(1 << 11), (0x5000, False)),
    (0xA, _root(1 << 48), (0x5000, False)),
    (0xA, _root(0, 1), (0x5000, False)),
    (0xB, _context(GOOD | 1 << 4, GOOD_HIGH), (0x5000, False)),
    (0xB, _context(GOOD | 1 << 11, GOOD_HIGH), (0x5000, False)),
    (0xB, _context(GOOD | 1 << 48, GOOD_HIGH), (0x5000, False)),
    (0xB, _context(GOOD, GOOD_HIGH | 1 << 7), (0x5000, False)),
    (0xB, _context(GOOD, GOOD_HIGH | 1 << 24), (0x5000, False)),
    (0xB, _context(GOOD, GOOD_HIGH | 1 << 63), (0x5000, False)),
    (0xC, _leaf(0x80003 | 1 << 48), (0x5000, True)),
    (0xC, _leaf(0x80003 | 1 << 51), (0x5000, True)),
    (0xC, _leaf(0x80003 | 1 << 62), (0x5000, True)),
    (0xC, _leaf(0x1000 | 0x83, at=2), (0x5000, False)),
    (0xC, _leaf(0x10_0000 | 0x83, at=2), (0x5000, False)),
    (0xC, _leaf(PAGE2M | 0x83, at=3), (0x5000, False)),
    (0xC, _leaf(0x21000 | 0x803, at=2), (0x5000, False)),
    (0xE, _leaf(0xFEE0_0003), (0x5000, True)),
    (0xE, _leaf(0xFEE0_0083, at=2), (0x5000, False)),
    (0xE, _leaf(0xC000_0083, at=3), (0x3EEF_F000, False)),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "break_it", "access"), FAULTS)
def test_each_fault_is_recorded_to_the_bit(
    r: Remapping, reason: int, break_it: Callable[[Remapping], None] | None, access: tuple[int, bool]
) -> None:
    simple(r)
    if break_it is not None:
        break_it(r)
    iova, write = access
    assert r.dma(iova + 0x123, write) is None
    assert r.log.records()[-1]["fault"] == reason, FAULT_REASONS
    expected_high = 1 << 63 | int(not write) << 62 | reason << 32 | DEVICE
    assert r.records() == [(iova, expected_high)]
    assert r.r(FSTS) == 0x2, "pending, record 0"
    assert not r.unit.s.pages, "nothing that faulted is cached"
    assert r.ram.writers == []


@pytest.mark.parametrize(("reason", "break_it", "access"), [f for f in FAULTS if f[0] not in (1, 8, 9, 0xA)])
def test_faults_are_not_recorded_where_software_says_so(
    r: Remapping, reason: int, break_it: Callable[[Remapping], None] | None, access: tuple[int, bool]
) -> None:
    simple(r)
    if break_it is not None:
        break_it(r)
    low = int.from_bytes(r.ram.get(CONTEXTS + 16 * DEVICE, 8), "little")
    r.ram.put64(CONTEXTS + 16 * DEVICE, low | 2)
    assert r.dma(access[0], access[1]) is None
    assert r.records() == [] and r.r(FSTS) == 0
    assert r.log.records()[-1]["fault"] == reason, "observers see it all the same"


def test_four_levels_reserve_bit_7_at_the_top(r: Remapping) -> None:
    top = r.domain(levels=4)
    r.map(top, 4, 0x5000, 0x80003)
    r.ram.put64(top, int.from_bytes(r.ram.get(top, 8), "little") | 0x80)
    r.translate_on()
    assert r.dma(0x5000) is None
    assert r.records()[0][1] >> 32 & 0xFF == 0xC


def test_part_of_a_large_page_may_be_the_interrupt_range(r: Remapping) -> None:
    top = r.domain()
    r.map(top, 3, 0, 0xC000_0083, 3)
    r.translate_on()
    for iova in (0x3EE0_0000, 0x3ED0_0000, 0x3EE0_0000, 0x3EEF_FFFF, 0x3EF0_0000):
        r.dma(iova)
    assert r.log.records()["fault"].tolist() == [0xE, NO_RAM, 0xE, 0xE, NO_RAM], "also when cached"


def test_the_interrupt_range_is_not_translated(r: Remapping) -> None:
    top = r.domain()
    r.map(top, 3, 0xFEE00000, 0x80003)
    r.translate_on()
    assert r.dma(0xFEE00000) is None and r.dma(0xFEE00000, write=True) is None
    r.port.write(DEVICE, 0xFEE00002, b"\1\2\3\4", 0)
    assert r.records() == [] and r.bus.messages == []
    r.port.write(DEVICE, 0xFEE01000, b"\x41\x40\0\0", 0)
    assert r.bus.messages == [(0xFEE01000, 0x4041)]


def test_records_fill_in_order_and_overflow(r: Remapping) -> None:
    simple(r)
    for i in range(vtd.FAULTS):
        r.dma(0x100000 + 0x1000 * i)
    assert [low for low, _ in r.records()] == [0x100000 + 0x1000 * i for i in range(vtd.FAULTS)]
    assert r.r(FSTS) == 0x2
    r.dma(0x200000)
    assert r.r(FSTS) == 0x3
    r.w(FRCD + 12, 1 << 31)
    r.dma(0x201000)
    assert len(r.records()) == vtd.FAULTS - 1, "while overflowed, nothing is recorded"
    r.w(FSTS, 1)
    assert r.r(FSTS) == 0x2
    r.dma(0x202000)
    assert r.r(FRCD, 8) == 0x202000
    r.dma(0x203000)
    assert r.r(FSTS) == 0x3, "record 1 is still in use"


def test_the_index_is_that_of_the_first_pending_record(r: Remapping) -> None:
    simple(r)
    r.dma(0x100000)
    r.dma(0x101000)
    assert r.r(FSTS) >> 8 == 0
    r.clear_faults()
    assert r.r(FSTS) == 0
    r.dma(0x102000)
    r.dma(0x103000)
    assert r.r(FSTS) == 0x202
    r.w(FRCD + 2 * 16 + 8, 1 << 63, 8)
    assert r.r(FSTS) == 0x202, "record 3 is pending"


def test_only_a_written_one_clears_a_record(r: Remapping) -> None:
    simple(r)
    r.dma(0x100000)
    r.w(FRCD + 12, 0x7FFF_FFFF)
    r.w(FRCD + 8, 0xFFFF_FFFF)
    r.w(FRCD, 0xFFFF_FFFF_FFFF_FFFF, 8)
    assert len(r.records()) == 1
    r.w(FRCD + 12, 1 << 31)
    assert r.records() == [] and r.r(FRCD, 8) == 0x100000


def arm_fault_event(r: Remapping) -> None:
    r.w(0x3C, 0x4155)
    r.w(0x40, 0xFEE03000)
    r.w(0x44, 0x100)
    r.w(FECTL, 0)


def test_one_event_until_everything_is_serviced(r: Remapping) -> None:
    simple(r)
    arm_fault_event(r)
    r.dma(0x100000)
    assert r.bus.take() == [(1, 0x55, 0x103, False, False)]
    r.dma(0x101000)
    assert r.bus.take() == [], "the first is not serviced"
    r.w(FRCD + 12, 1 << 31)
    r.dma(0x102000)
    assert r.bus.take() == []
    r.clear_faults()
    r.dma(0x103000)
    assert len(r.bus.take()) == 1


def test_a_masked_event_waits(r: Remapping) -> None:
    simple(r)
    arm_fault_event(r)
    r.w(FECTL, 1 << 31)
    r.dma(0x100000)
    assert r.bus.take() == [] and r.r(FECTL) == 3 << 30
    r.w(FECTL, 0)
    assert len(r.bus.take()) == 1 and r.r(FECTL) == 0
    r.w(FECTL, 1 << 31)
    r.dma(0x101000)
    assert r.r(FECTL) == 1 << 31, "not a new event"
    r.clear_faults()
    r.dma(0x102000)
    assert r.r(FECTL) == 3 << 30
    r.clear_faults()
    assert r.r(FECTL) == 1 << 31, "serviced by looking: no longer pending"
    r.w(FECTL, 0)
    assert r.bus.take() == []


def test_events_of_the_unit_are_not_remapped_and_go_to_the_interrupt_range_only(r: Remapping) -> None:
    simple(r)
    arm_fault_event(r)
    r.command(1 << 25)
    r.dma(0x100000)
    assert len(r.bus.take()) == 1
    r.clear_faults()
    r.w(0x40, 0x1000)
    r.dma(0x100000)
    assert r.bus.take() == []


# --- what stays in caches ---


def test_a_page_stays_until_it_is_invalidated(r: Remapping) -> None:
    where = simple(r)
    assert r.dma(0x5000) == 0x80000
    r.ram.put64(where, 0)
    assert r.dma(0x5000, write=True) == 0x80000, "stale: this is what a missing invalidation does"
    r.off(TE)
    r.command(SRTP)
    r.command(TE)
    assert r.dma(0x5000) == 0x80000, "neither a new root pointer nor an interval without translation"
    r.flush_contexts()
    assert r.dma(0x5000) == 0x80000, "nor context invalidation"
    r.flush_pages()
    assert r.dma(0x5000) is None


def test_permissions_stay_too(r: Remapping) -> None:
    where = simple(r)
    r.ram.put64(where, 0x80001)
    assert r.dma(0x5000, write=True) is None
    assert r.dma(0x5000) == 0x80000
    r.ram.put64(where, 0x80003)
    assert r.dma(0x5000, write=True) is None, "the cached page may not be written"
    r.flush_pages()
    assert r.dma(0x5000, write=True) == 0x80000
    r.ram.put64(where, 0x80001)
    assert r.dma(0x5000, write=True) == 0x80000


def test_what_was_not_present_is_not_cached(r: Remapping) -> None:
    where = simple(r)
    r.ram.put64(where, 0)
    assert r.dma(0x5000) is None
    r.ram.put64(where, 0x90003)
    assert r.dma(0x5000) == 0x90000


def test_a_context_stays_until_it_is_invalidated(r: Remapping) -> None:
    simple(r)
    r.dma(0x5000)
    r.context(DEVICE, 2 << 2 | 1, DOMAIN << 8 | 2)
    assert r.dma(0x9000) is None, "still translated"
    r.ram.put64(ROOT, 0, 0)
    r.flush_pages()
    assert r.dma(0x5000) == 0x80000
    r.flush_contexts()
    assert r.dma(0x5000) is None


WIDE = {0: 0, 1: 0xA501, 2: 0x5A02, 3: 0xFF03, 9: 9}
"""The domain ids that the numbers of the cases below stand for: all 16 bits count."""


def fill(r: Remapping) -> None:
    """Devices 1 (domain 1), 2 (domain 1) and 8 functions of device 3 (domain 2), each with pages cached."""
    tops = {1: r.domain(source=8, domain=WIDE[1]), 2: r.domain(source=24, domain=WIDE[2])}
    r.domain(source=16, domain=WIDE[1], top=tops[1])
    for function in range(1, 8):
        r.domain(source=24 + function, domain=WIDE[2], top=tops[2])
    for domain, top in tops.items():
        for i in range(4):
            r.map(top, 3, 0x1000 * i, 0x80000 + 0x10000 * domain + 0x1000 * i | 3)
        r.map(top, 3, PAGE2M, HIGH | 0x83, 2)
        r.map(top, 3, PAGE1G, HIGH | 0x83, 3)
    r.translate_on()
    for source in (8, 16, *range(24, 32)):
        for iova in (0, 0x1000, 0x2000, 0x3000, PAGE2M, PAGE1G):
            assert r.dma(iova, source=source) is not None
    assert len(r.unit.s.contexts) == 10 and sum(map(len, r.unit.s.pages.values())) == 12


def contexts(r: Remapping) -> set[int]:
    return {int(key) for key in r.unit.s.contexts}


ALL_SOURCES = {8, 16, *range(24, 32)}
CONTEXT_CASES = [
    # granularity, domain, source, function mask, what is left
    (1, 0, 0, 0, set()),
    (2, 1, 0, 0, set(range(24, 32))),
    (2, 2, 0, 0, {8, 16}),
    (2, 3, 0, 0, ALL_SOURCES),
    (3, 1, 8, 0, ALL_SOURCES - {8}),
    (3, 2, 8, 0, ALL_SOURCES),
    (3, 2, 24, 0, ALL_SOURCES - {24}),
    (3, 2, 24, 1, ALL_SOURCES - {24, 28}),
    (3, 2, 24, 2, ALL_SOURCES - {24, 26, 28, 30}),
    (3, 2, 25, 2, ALL_SOURCES - {25, 27, 29, 31}),
    (3, 2, 29, 3, {8, 16}),
]  # fmt: skip


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize(("kind", "domain", "source", "mask", "left"), CONTEXT_CASES)
def test_context_invalidation(
    r: Remapping, queued: bool, kind: int, domain: int, source: int, mask: int, left: set[int]
) -> None:
    fill(r)
    domain = WIDE[domain]
    if queued:
        r.queue_on()
        r.submit(1 | kind << 4 | domain << 16 | source << 32 | mask << 48)
        assert r.r(IQH, 8) == 16
    else:
        r.w(0x28, 1 << 63 | kind << 61 | mask << 32 | source << 16 | domain, 8)
        assert r.r(0x28, 8) >> 59 == kind | kind << 2, "done, as asked"
    assert contexts(r) == left
    assert sum(map(len, r.unit.s.pages.values())) == 12


def pages(r: Remapping) -> set[tuple[int, int]]:
    """(domain, address) of each cached page."""
    numbers = {str(wide): number for number, wide in WIDE.items()}
    return {
        (numbers[domain], int(key[3:]) << int(key[:2]))
        for domain, keys in r.unit.s.pages.items()
        for key in keys
    }


ALL_PAGES = {(d, a) for d in (1, 2) for a in (0, 0x1000, 0x2000, 0x3000, PAGE2M, PAGE1G)}
SMALL = {0, 0x1000, 0x2000, 0x3000}
PAGE_CASES = [
    # granularity, domain, address, mask, what goes
    (1, 0, 0, 0, ALL_PAGES),
    (2, 1, 0, 0, {p for p in ALL_PAGES if p[0] == 1}),
    (2, 9, 0, 0, set()),
    (3, 1, 0x1000, 0, {(1, 0x1000)}),
    (3, 2, 0x2000, 1, {(2, 0x2000), (2, 0x3000)}),
    (3, 2, 0x3000, 1, {(2, 0x2000), (2, 0x3000)}),
    (3, 1, 0x0000, 2, {(1, a) for a in SMALL}),
    (3, 1, 0x4000, 2, set()),
    (3, 1, PAGE2M + 0x5000, 0, {(1, PAGE2M)}),
    (3, 1, 0, 9, {(1, a) for a in SMALL}),
    (3, 1, 0, 10, {(1, a) for a in {*SMALL, PAGE2M}}),
    (3, 2, PAGE1G + 0x1234_5000, 0, {(2, PAGE1G)}),
    (3, 2, 0, 18, {(2, a) for a in {*SMALL, PAGE2M}}),
    (3, 2, PAGE1G, 18, {(2, PAGE1G)}),
    (3, 9, 0, 18, set()),
]  # fmt: skip


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize(("kind", "domain", "address", "mask", "gone"), PAGE_CASES)
def test_page_invalidation(
    r: Remapping, queued: bool, kind: int, domain: int, address: int, mask: int, gone: set[tuple[int, int]]
) -> None:
    fill(r)
    domain = WIDE[domain]
    if queued:
        r.queue_on()
        r.submit(2 | kind << 4 | 3 << 6 | domain << 16, address | 1 << 6 | mask)
        assert r.r(IQH, 8) == 16
    else:
        r.w(0x100, address | mask, 8)
        r.w(0x108, 1 << 63 | kind << 60 | 3 << 48 | domain << 32, 8)
        assert r.r(0x108, 8) >> 57 == kind | kind << 3, "done, as asked"
    assert pages(r) == ALL_PAGES - gone
    assert contexts(r) == ALL_SOURCES


def test_registers_invalidate_nothing_that_is_wrong(r: Remapping) -> None:
    """Granularity 0, a mask beyond MAMV, anything while the queue is on: completed with granularity 0."""
    fill(r)
    r.w(0x28, 1 << 63, 8)
    assert r.r(0x28, 8) >> 59 == 0
    r.w(0x108, 1 << 63, 8)
    assert r.r(0x108, 8) >> 57 == 0
    r.w(0x100, 19, 8)
    r.w(0x108, 1 << 63 | 3 << 60 | WIDE[1] << 32, 8)
    assert r.r(0x108, 8) >> 57 & 3 == 0
    r.queue_on()
    r.flush_contexts()
    r.flush_pages()
    assert r.r(0x28, 8) >> 59 & 3 == 0 and r.r(0x108, 8) >> 57 & 3 == 0
    assert pages(r) == ALL_PAGES and contexts(r) == ALL_SOURCES


def test_a_command_acts_when_its_upper_half_is_written(r: Remapping) -> None:
    fill(r)
    r.w(0x108, 0)
    assert pages(r) == ALL_PAGES
    r.w(0x10C, 1 << 31 | 1 << 28)
    assert pages(r) == set()
    r.w(0x28, 8 << 16 | WIDE[1])
    assert contexts(r) == ALL_SOURCES
    r.w(0x2C, 1 << 31 | 3 << 29)
    assert contexts(r) == ALL_SOURCES - {8}


def test_a_full_cache_forgets_all(r: Remapping) -> None:
    top = r.domain()
    r.map(top, 3, 0, 0x80003)
    r.translate_on()
    r.unit.s.pages = {"1": {f"12:{i}": 3 for i in range(vtd.PAGES_MAX - 1)}}
    assert r.dma(0) == 0x80000
    assert sum(map(len, r.unit.s.pages.values())) == vtd.PAGES_MAX
    r.ram.put64(top, HIGH | 0x83)
    assert r.dma(0) == 0x80000
    assert r.dma(0x1000) == HIGH + 0x1000
    assert r.unit.s.pages == {"7": {"30:0": HIGH | 3}}
    assert r.dma(0) == HIGH, "the stale page went with the others"


# --- the queue ---


def test_wait_descriptors_write_status_in_order(r: Remapping) -> None:
    fill(r)
    r.queue_on()
    r.submit(5 | 0x20 | 0x1111_2222 << 32, STATUS)
    assert r.ram.get(STATUS, 8) == bytes.fromhex("2222111100000000")
    assert r.ram.writers[-1] == "dma:vtd"
    r.submit(5 | 0x40, STATUS)
    assert r.ram.get(STATUS, 4) == bytes.fromhex("22221111"), "no status write asked for"
    r.submit(5 | 0x20 | 5 << 32, 0x8000_0000)
    assert r.r(FSTS) == 0, "a status word outside memory is lost"
    assert r.r(IQH, 8) == 48


def test_completion_interrupts(r: Remapping) -> None:
    r.queue_on()
    r.w(0xA4, 0x66)
    r.w(0xA8, 0xFEE00000)
    r.submit(5 | 0x10)
    assert r.bus.take() == [] and (r.r(0x9C), r.r(0xA0)) == (1, 3 << 30)
    r.w(0xA0, 0)
    assert r.bus.take() == [(0, 0x66, 0, False, False)] and r.r(0xA0) == 0
    r.submit(5 | 0x10)
    assert r.bus.take() == [], "the last one is not serviced"
    r.w(0x9C, 1)
    assert r.r(0x9C) == 0
    r.submit(5 | 0x10)
    assert len(r.bus.take()) == 1
    r.w(0x9C, 1)
    r.w(0xA0, 1 << 31)
    r.submit(5 | 0x10)
    r.w(0x9C, 1)
    r.w(0xA0, 0)
    assert r.bus.take() == [], "serviced while masked"


def test_the_queue_wraps(r: Remapping) -> None:
    r.queue_on()
    for i in range(600):
        r.submit(5 | 0x20 | i << 32, STATUS + 4 * (i % 7))
    assert r.r(IQH, 8) == 600 * 16 % 4096 == r.r(IQT, 8)
    assert r.ram.get(STATUS + 4 * (599 % 7), 4) == (599).to_bytes(4, "little")


def test_a_large_queue(r: Remapping) -> None:
    r.queue_on(size=3)
    r.ram.put64(QUEUE + 0x7FF0, 5 | 0x20 | 9 << 32, STATUS)
    for at in range(0, 0x7FF0, 16):
        r.ram.put64(QUEUE + at, 5, 0)
    r.w(IQT, 0x7FF0)
    r.w(IQT, 0, 8)
    assert r.r(IQH, 8) == 0 and r.ram.get(STATUS, 1) == b"\x09"


def test_queued_before_it_is_on(r: Remapping) -> None:
    r.ram.put64(QUEUE, 5 | 0x20 | 9 << 32, STATUS)
    r.w(IQA, QUEUE, 8)
    r.w(IQT, 16, 8)
    assert r.r(IQH, 8) == 0
    r.command(QIE)
    assert r.r(IQH, 8) == 16 and r.ram.get(STATUS, 1) == b"\x09"
    r.off(QIE)
    assert r.r(IQH, 8) == 0


BAD = [
    # low, high, what IQERCD says
    (0, 0, 3), (3, 0, 3), (6, 0, 3), (7, 0, 3), (15, 0, 3), (1 << 9 | 5, 0, 3), (1 << 11 | 1 << 4 | 1, 0, 3),
    (1, 0, 4), (1 | 1 << 4 | 1 << 6, 0, 4), (1 | 1 << 4 | 1 << 12, 0, 4), (1 | 1 << 4 | 1 << 50, 0, 4),
    (1 | 1 << 4, 1, 4), (2, 0, 4), (2 | 1 << 4 | 1 << 8, 0, 4), (2 | 1 << 4 | 1 << 32, 0, 4),
    (2 | 3 << 4, 1 << 7, 4), (2 | 3 << 4, 19, 4), (4 | 1 << 5, 0, 4), (4 | 1 << 12, 0, 4),
    (4 | 1 << 48, 0, 4),
    (4, 1, 4), (5 | 1 << 8, 0, 4), (5 | 1 << 12, 0, 4), (5 | 1 << 31, 0, 4), (5, 1, 4), (5, 2, 4),
]  # fmt: skip


@pytest.mark.parametrize(("low", "high", "info"), BAD)
def test_a_bad_descriptor_stops_the_queue(r: Remapping, low: int, high: int, info: int) -> None:
    fill(r)
    arm_fault_event(r)
    r.queue_on()
    r.submit(5)
    r.submit(low, high)
    assert (r.r(FSTS), r.r(0xB0, 8), r.r(IQH, 8)) == (0x10, info, 16)
    assert len(r.bus.take()) == 1
    r.submit(5 | 0x20 | 9 << 32, STATUS)
    assert r.r(IQH, 8) == 16 and r.ram.get(STATUS, 1) == b"\0"
    r.w(FSTS, 0x10)
    assert (r.r(FSTS), r.r(IQH, 8)) == (0x10, 16), "it is still there"
    r.ram.put64(QUEUE + 16, 5 | 0x20 | 8 << 32, STATUS + 4)
    r.w(FSTS, 0x10)
    assert (r.r(FSTS), r.r(0xB0, 8), r.r(IQH, 8)) == (0, 0, 48), "mended: it goes on"
    assert r.ram.get(STATUS, 8) == bytes((9, 0, 0, 0, 8, 0, 0, 0))
    assert pages(r) == ALL_PAGES and contexts(r) == ALL_SOURCES


def test_a_queue_error_beside_a_pending_fault_is_no_new_event(r: Remapping) -> None:
    simple(r)
    arm_fault_event(r)
    r.dma(0x100000)
    assert len(r.bus.take()) == 1
    r.queue_on()
    r.submit(15)
    assert r.bus.take() == [] and r.r(FSTS) == 0x12
    r.w(FRCD + 12, 1 << 31)
    r.dma(0x101000)
    assert r.bus.take() == [], "nor is a fault beside a queue error"


def test_a_write_of_one_half_keeps_the_other(r: Remapping) -> None:
    for at in (0x20, 0x90, 0xB8, 0x100):
        r.w(at, 0x0123_4567_89AB_C000, 8)
        r.w(at, 0x7654_3000)
        assert r.r(at, 8) == 0x0123_4567_7654_3000
        r.w(at + 4, 0x0FED_CBA9)
        assert r.r(at, 8) == 0x0FED_CBA9_7654_3000


def test_a_tail_beyond_the_queue(r: Remapping) -> None:
    r.queue_on()
    r.w(IQT, 4096, 8)
    assert (r.r(FSTS), r.r(0xB0, 8), r.r(IQH, 8)) == (0x10, 1, 0)


def test_a_queue_outside_memory(r: Remapping) -> None:
    r.w(IQA, 0x8000_0000, 8)
    r.command(QIE)
    r.w(IQT, 16, 8)
    assert (r.r(FSTS), r.r(0xB0, 8), r.r(IQH, 8)) == (0x10, 2, 0)
