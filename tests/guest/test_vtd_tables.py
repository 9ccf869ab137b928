"""Second-level tables of VT-d in the kernel (drivers/vtd_tables.c, vtd_claim.c) and its reader of the DMAR
table, compiled for the host: random programs against a plain dictionary, and damage.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emu import acpi
from kernels import build
from luo import abi_devices as abi

PAGE = 4096
EXIST, NOMEM, INVAL = -17, -12, -22
READ, WRITE = 1, 2
MIB2, GIB = 1 << 21, 1 << 30

LIBRARY = build.Target(
    name="test-vtd",
    output="build/tests/libvtd.so",
    sources=("tests/guest/vtd_host.c",),
    inputs=("kernels/include/*.h", "kernels/drivers/*.h", "kernels/drivers/vtd_*.c", "kernels/drivers/dmar.c",
            "luo/guest/luo_iommufd_check.c", "luo/guest/*.h", "tests/guest/*_release.h"),
    flags=(
        "-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64", "-O1", "-g0", "-std=gnu17", "-fPIC", "-shared",
        *build.NO_SANITIZER, *build.WARNINGS, *build.REPRODUCIBLE, "-iquote", "kernels/include",
        "-iquote", "tests/guest", '-DRELEASE_HEADER="mm_release.h"', "-DMM_BOTTOM_UP=0",
    ),
)  # fmt: skip


class Dmar(ctypes.Structure):
    """struct dmar."""

    _fields_ = [
        ("registers", ctypes.c_uint64),
        ("interrupts", ctypes.c_bool),
        ("nr_io_apics", ctypes.c_uint32),
        ("io_apics", ctypes.c_uint16 * 16),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    path = build.build(build.project_root(), LIBRARY)
    assert path is not None
    lib = ctypes.CDLL(str(path))
    u64, pointer = ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64)
    lib.host_map.argtypes = [u64, u64, u64, u64, pointer]
    lib.host_unmap.argtypes = [u64, u64, pointer]
    lib.host_lookup.argtypes = [u64, ctypes.POINTER(ctypes.c_uint32)]
    lib.host_run.argtypes = [u64, u64, pointer, u64]
    lib.host_claim.argtypes = [pointer, pointer]
    lib.host_pages.argtypes = [ctypes.POINTER(pointer)]
    lib.host_dmar.argtypes = [ctypes.c_char_p, u64, ctypes.POINTER(Dmar)]
    for name in ("host_lookup", "host_run", "host_counted", "host_top"):
        getattr(lib, name).restype = u64
    lib.host_arena.restype = ctypes.c_void_p
    lib.host_dmar.restype = ctypes.c_bool
    lib.host_check.argtypes = [ctypes.c_char_p, u64, u64]
    lib.host_check.restype = ctypes.c_char_p
    return lib


@dataclass
class Tables:
    """The kernel's tables, and what they have to be: page of I/O addresses → (physical page, rights)."""

    levels: int = 4
    largest: int = 3
    model: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lib = library()
        assert self.lib.host_reset(self.levels, self.largest) == 0

    def map(self, iova: int, phys: int, size: int, prot: int) -> int:
        done = ctypes.c_uint64()
        err: int = self.lib.host_map(iova, phys, size, prot, done)
        pages = range(iova // PAGE, (iova + size) // PAGE)
        if any(page in self.model for page in pages):
            assert err == EXIST and done.value == 0
        else:
            assert err in (0, NOMEM)
            assert err or done.value == size
            for n, page in enumerate(pages[: done.value // PAGE]):
                self.model[page] = (phys // PAGE + n, prot)
        return err

    def unmap(self, iova: int, size: int) -> int:
        done = ctypes.c_uint64()
        err: int = self.lib.host_unmap(iova, size, done)
        assert err != -1000, "a table was freed that hardware could reach"
        pages = [p for p in range(iova // PAGE, (iova + size) // PAGE) if p in self.model]
        if not err:
            assert done.value == len(pages) * PAGE
        gone = done.value // PAGE
        for page in pages[:gone]:
            del self.model[page]
        return err

    def pages(self) -> dict[int, tuple[int, int]]:
        """What is mapped, as the next kernel would find it; every table is counted."""
        nr, total = ctypes.c_uint64(), ctypes.c_uint64()
        assert self.lib.host_claim(nr, total) == 0
        assert nr.value == self.lib.host_counted() == self.lib.host_used() == self.lib.host_each()
        data = ctypes.POINTER(ctypes.c_uint64)()
        count = self.lib.host_pages(data)
        found: dict[int, tuple[int, int]] = {}
        for i in range(count):
            iova, phys, size, prot = data[4 * i : 4 * i + 4]
            assert iova % size == 0 and phys % size == 0
            for n in range(size // PAGE):
                found[iova // PAGE + n] = (phys // PAGE + n, prot)
        assert total.value == len(found) * PAGE
        return found

    def check(self) -> None:
        assert self.pages() == self.model
        level = ctypes.c_uint32()
        for page in [*list(self.model)[:20], 0, 1, 512]:
            entry = self.lib.host_lookup(page * PAGE, level)
            if page not in self.model:
                assert entry == 0
                continue
            size = 1 << 12 + 9 * (level.value - 1)
            phys = (entry & (1 << 48) - PAGE & -size) + page * PAGE % size
            assert (phys // PAGE, entry & 3) == self.model[page]


PLACES = st.sampled_from([0, MIB2 - 2 * PAGE, MIB2, 3 * MIB2, GIB - MIB2, GIB, GIB - PAGE])
STEPS = st.tuples(
    st.sampled_from(["map", "map", "unmap"]),
    PLACES,
    st.integers(0, 3),
    st.sampled_from([1, 2, 3, 511, 512, 513, 1024, 1536]),
    st.sampled_from([0, MIB2, 5 * PAGE, GIB, 7 * GIB + MIB2]),
    st.integers(1, 3),
)


@given(st.integers(3, 4), st.integers(1, 3), st.lists(STEPS, max_size=12))
@settings(max_examples=150, deadline=None)
def test_a_dictionary_says_the_same(
    levels: int, largest: int, steps: list[tuple[str, int, int, int, int, int]]
) -> None:
    t = Tables(levels, largest)
    for what, place, offset, pages, phys, prot in steps:
        iova = place + offset * PAGE
        if what == "map":
            assert t.map(iova, phys + offset * PAGE, pages * PAGE, prot) in (0, EXIST)
        else:
            assert t.unmap(iova, pages * PAGE) == 0
    t.check()
    t.lib.host_free()
    assert t.lib.host_used() == 0, "a table is lost"


@given(st.lists(STEPS, min_size=1, max_size=8), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_without_memory_nothing_is_lost(steps: list[tuple[str, int, int, int, int, int]], limit: int) -> None:
    t = Tables()
    t.lib.host_limit(limit)
    for what, place, offset, pages, phys, prot in steps:
        iova = place + offset * PAGE
        if what == "map":
            t.map(iova, phys + offset * PAGE, pages * PAGE, prot)
        else:
            t.unmap(iova, pages * PAGE)
        assert t.lib.host_used() <= limit
        t.check()
    t.lib.host_free()
    assert t.lib.host_used() == 0


def test_large_pages_are_used_and_split() -> None:
    t = Tables()
    level = ctypes.c_uint32()
    assert t.map(GIB, 2 * GIB, GIB, 3) == 0
    assert t.lib.host_used() == 2, "a gigabyte takes one entry"
    assert t.lib.host_lookup(GIB + 5 * MIB2, level) and level.value == 3
    assert t.unmap(GIB + 5 * MIB2 + PAGE, PAGE) == 0
    assert t.lib.host_lookup(GIB + 4 * MIB2, level) and level.value == 2
    assert t.lib.host_lookup(GIB + 5 * MIB2, level) == 2 * GIB + 5 * MIB2 | 3 and level.value == 1
    t.check()
    assert t.unmap(GIB, GIB) == 0
    assert t.lib.host_used() == 1, "tables that map nothing go"


def test_runs_end_where_memory_or_rights_do() -> None:
    t = Tables()
    t.map(0x10000, 0x200000, 4 * PAGE, 3)
    t.map(0x14000, 0x204000, PAGE, 1)
    phys = ctypes.c_uint64()
    assert t.lib.host_run(0x11000, 0x20000, phys, 3) == 3 * PAGE and phys.value == 0x201000
    assert t.lib.host_run(0x11000, 0x12000, phys, 3) == PAGE
    assert t.lib.host_run(0x14000, 0x20000, phys, 3) == 0
    assert t.lib.host_run(0x15000, 0x20000, phys, 3) == 0
    assert t.lib.host_run(1 << 39, 1 << 40, phys, 3) == 0


def memory(t: Tables) -> NDArray[np.uint64]:
    """All tables, as words."""
    pages = 64 * PAGE
    raw = (ctypes.c_uint64 * (pages // 8)).from_address(t.lib.host_arena())
    return np.ctypeslib.as_array(raw)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (1 << 52, "a bit above the address"),
        (1 << 62, "transient mapping"),
        (1 << 11, "snoop"),
        (1 << 3, "a bit that no kernel sets"),
        (3, "no rights"),
    ],
)
def test_one_bit_is_enough(damage: int, what: str) -> None:
    """In each entry that is there: of tables and of pages."""
    t = Tables()
    t.map(0, 5 * PAGE, PAGE, 3)
    t.map(MIB2, MIB2, MIB2, 3)
    t.map(GIB, GIB, GIB, 3)
    words = memory(t)
    nr, total = ctypes.c_uint64(), ctypes.c_uint64()
    places = [i for i in range(512, len(words)) if words[i] and words[i] != 0xDDDDDDDDDDDDDDDD]
    assert len(places) == 6
    for i in places:
        words[i] ^= np.uint64(damage)
        assert t.lib.host_claim(nr, total) == INVAL, f"{what} in word {i}"
        words[i] ^= np.uint64(damage)
    assert t.lib.host_claim(nr, total) == 0


def test_a_large_page_that_is_not_aligned_or_not_offered_is_refused() -> None:
    t = Tables(largest=2)
    t.map(0, 0, MIB2, 3)
    nr, total = ctypes.c_uint64(), ctypes.c_uint64()
    words = memory(t)
    pages = [i for i in range(512, len(words)) if words[i] == 0x83]
    assert len(pages) == 1
    words[pages[0]] = 0x1083
    assert t.lib.host_claim(nr, total) == INVAL
    words[pages[0]] = 0x83
    above = [i for i in range(512, len(words)) if words[i] == 4 * PAGE - PAGE | 3 and i < pages[0]]
    words[above[0]] = 0x83  # a page of 1 GiB, which this unit does not have
    assert t.lib.host_claim(nr, total) == INVAL


def test_a_loop_of_tables_ends() -> None:
    t = Tables()
    t.map(0, 0, PAGE, 3)
    words = memory(t)
    top = t.lib.host_top()
    tables = [i for i in range(512, len(words)) if words[i] & np.uint64(0x83) == 3 and words[i] > 4096]
    for i in tables:
        before = words[i]
        words[i] = top | 3
        nr, total = ctypes.c_uint64(), ctypes.c_uint64()
        assert t.lib.host_claim(nr, total) == INVAL
        words[i] = before


@given(
    st.lists(st.tuples(st.integers(512, 64 * 512 - 1), st.integers(0, (1 << 64) - 1)), min_size=1, max_size=4)
)
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_or_understood(damage: list[tuple[int, int]]) -> None:
    """Nothing crashes, and nothing is read outside the tables (the library's owner would abort)."""
    t = Tables()
    t.map(0, 0, 700 * PAGE, 3)
    t.map(GIB, 0, 3 * MIB2, 1)
    words = memory(t)
    for i, value in damage:
        words[i] = value
    nr, total = ctypes.c_uint64(), ctypes.c_uint64()
    assert t.lib.host_claim(nr, total) in (0, INVAL, NOMEM)


# --- DMAR ---------------------------------------------------------------------------------------------------


def parse(table: bytes) -> Dmar | None:
    d = Dmar()
    return d if library().host_dmar(table, len(table), d) else None


def test_our_own_table_is_understood() -> None:
    d = parse(acpi.dmar())
    assert d is not None
    assert d.registers == 0xFED90000 and d.interrupts and d.nr_io_apics == 1
    assert d.io_apics[1] == 0xF0F8, "the requester id that the I/O APIC has"


@pytest.mark.parametrize("cut", range(len(acpi.dmar())))
def test_a_table_that_ends_early(cut: int) -> None:
    d = parse(acpi.dmar()[:cut])
    assert d is None, "only the whole has a unit"


@given(st.binary(max_size=120))
@settings(max_examples=300, deadline=None)
def test_noise_behind_the_header(noise: bytes) -> None:
    parse(acpi.dmar()[:48] + noise)


def test_two_units_are_none() -> None:
    table = acpi.dmar()
    length = struct.unpack_from("<H", table, 50)[0]
    assert parse(table + table[48 : 48 + length]) is None


@pytest.mark.parametrize("base", [0, 0x1000_0001, 1 << 60])
def test_registers_at_an_impossible_address(base: int) -> None:
    table = bytearray(acpi.dmar())
    struct.pack_into("<Q", table, 56, base)
    assert parse(bytes(table)) is None


# --- records of iommufds ------------------------------------------------------------------------------------


def record(
    objects: list[list[int]],
    areas: list[list[int]],
    extents: list[list[int]],
    ranges: list[list[int]],
    **more: int,
) -> bytes:
    """A record, with the right checksum and sizes unless said otherwise."""
    body = b"".join(struct.pack("<6I", *o) for o in objects)
    body += b"".join(struct.pack("<QQ4I", *a) for a in areas)
    body += b"".join(struct.pack("<QQ", *e) for e in extents)
    body += b"".join(struct.pack("<QQII", *r) for r in ranges)
    counts = [more.get("nr_objects", len(objects)), more.get("nr_areas", len(areas))]
    counts += [more.get("nr_extents", len(extents)), more.get("nr_ranges", len(ranges))]
    size = more.get("size", abi.IOMMUFD.size + len(body))
    head = abi.IOMMUFD.pack(0, size, *counts, more.get("mode", 0), more.get("reserved", 0), bytes(16))
    data = head[8:] + body
    return struct.pack("<Q", abi.checksum(data)) + data


def checked(data: bytes, room: int = 4 * PAGE) -> bytes | None:
    found: bytes | None = library().host_check(data, len(data), room)
    return found


GOOD_OBJECTS = [[1, 1, 0, 0, 0, 0], [2, 3, 3, 0, 24, 0], [3, 2, 1, 1, 5, 0], [7, 1, 0, 2, 0, 0]]
GOOD_AREAS = [
    [0x1000, 0x3000, 1, 3, 0, 2],
    [0x8000, 0x1000, 1, 1, 2, 1],
    [0x1000, 0x1000, 7, 2, 3, 1],
]
GOOD_EXTENTS = [[0x5000, 0x1000], [0x9000, 0x2000], [0x20000, 0x1000], [0x20000, 0x1000]]
GOOD_RANGES = [[0, 0xFFFF, 1, 2]]


def test_a_record_that_makes_sense() -> None:
    data = record(GOOD_OBJECTS, GOOD_AREAS, GOOD_EXTENTS, GOOD_RANGES)
    assert checked(data) is None
    assert checked(data, len(data)) is None, "nothing behind it is read"
    assert checked(data, len(data) - 8) is not None
    assert checked(record([], [], [], [])) is None


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_other_value_is_looked_at(data: st.DataObject) -> None:
    """One number is another, and the checksum right. What is still accepted obeys all rules."""
    parts = [[list(row) for row in part] for part in (GOOD_OBJECTS, GOOD_AREAS, GOOD_EXTENTS, GOOD_RANGES)]
    wide = ([0] * 6, [1, 1, 0, 0, 0, 0], [1, 1], [1, 1, 0, 0])
    part = data.draw(st.integers(0, 3))
    row = data.draw(st.integers(0, len(parts[part]) - 1))
    column = data.draw(st.integers(0, len(parts[part][row]) - 1))
    top = 64 if wide[part][column] else 32
    values = st.sampled_from([0, 1, 2, 3, 5, 7, 0x1000, 0x2000, 0x8000, (1 << top) - 1, (1 << top) - 4096])
    parts[part][row][column] = data.draw(values | st.integers(0, (1 << top) - 1))
    raw = record(*parts)
    if checked(raw) is not None:
        return
    objects, areas, extents, ranges = parts
    kinds = {o[0]: o[1] for o in objects}
    assert sorted(kinds) == [o[0] for o in objects] and 0 not in kinds
    for id, kind, parent, flags, _, reserved in objects:
        assert not reserved and kind in (1, 2, 3)
        assert kinds.get(parent) == {1: None, 2: 1, 3: 2}[kind], f"object {id}"
        assert flags in {1: (0, 2), 2: (0, 1), 3: (0,)}[kind]
    first = 0
    for n, (iova, size, ioas, prot, start, count) in enumerate(areas):
        assert kinds[ioas] == 1 and prot in (1, 2, 3) and size and not (iova | size) % PAGE
        assert iova + size <= 1 << 64 and start == first
        assert sum(e[1] for e in extents[start : start + count]) == size
        assert not n or areas[n - 1][2] < ioas or areas[n - 1][0] + areas[n - 1][1] <= iova
        first += count
    assert first == len(extents) and all(not (p | n) % PAGE and p + n < 1 << 64 for p, n in extents)
    assert all(kinds[r[2]] == 1 and r[0] <= r[1] and r[3] == 2 for r in ranges)


@given(
    st.binary(max_size=400),
    st.integers(0, 600),
    st.lists(st.integers(0, 20) | st.integers(0, (1 << 32) - 1), min_size=4, max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_counts_that_lead_elsewhere(noise: bytes, size: int, counts: list[int]) -> None:
    """A record of noise with any counts: refused, or all of it is inside (else the library would crash)."""
    head = abi.IOMMUFD.pack(0, size, *counts, 0, 0, bytes(16))
    data = head[8:] + noise
    room = len(data) + 8 + 7 & ~7
    data = data.ljust(room - 8, b"\0")
    checked(struct.pack("<Q", abi.checksum(data[: max(0, size - 8) // 8 * 8])) + data, room)


@pytest.mark.parametrize(
    "field", ["size", "nr_objects", "nr_areas", "nr_extents", "nr_ranges", "mode", "reserved"]
)
@pytest.mark.parametrize("value", [0, 1, 5, 9, 1 << 20, (1 << 32) - 1])
def test_a_wrong_header(field: str, value: int) -> None:
    data = record(GOOD_OBJECTS, GOOD_AREAS, GOOD_EXTENTS, GOOD_RANGES, **{field: value})
    harmless = {("mode", 0), ("mode", 1), ("reserved", 0), ("nr_ranges", 1)}
    assert (checked(data) is None) == ((field, value) in harmless)
