"""Decoding: who answers, how accesses are cut, and what happens where nobody is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.bus import Bus, Unclaimed
from emu.devices.device import Region, plain
from emu.errors import ConfigError


class Cells:
    """A region of plain bytes that notes each access."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(range(size))
        self.seen: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int, now: int) -> int:
        self.seen.append(("r", offset, size))
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        self.seen.append(("w", offset, size))
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")


def region(kind: str, base: int, cells: Cells, width: int = 4) -> Region:
    return Region(kind, base, len(cells.bytes), cells.read, cells.write, width)  # type: ignore[arg-type]


def test_an_access_that_fits_goes_through_whole() -> None:
    bus, cells = Bus(), Cells(16)
    bus.add(region("mmio", 0x1000, cells, 8))
    assert bus.mmio_read(0x1004, 4, 0) == 0x07060504
    bus.write("mmio", 0x1008, 8, 0x1122334455667788, 0)
    assert cells.seen == [("r", 4, 4), ("w", 8, 8)]
    assert bus.read("mmio", 0x1008, 8, 0) == 0x1122334455667788


def test_a_wider_access_is_cut_into_aligned_pieces_lowest_first() -> None:
    bus, cells = Bus(), Cells(16)
    bus.add(region("mmio", 0x1000, cells, 4))
    assert bus.mmio_read(0x1000, 8, 0) == 0x0706050403020100
    assert cells.seen == [("r", 0, 4), ("r", 4, 4)]
    cells.seen.clear()
    bus.mmio_write(0x1001, 8, 0xA8A7A6A5A4A3A2A1, 0)
    assert cells.seen == [("w", 1, 1), ("w", 2, 2), ("w", 4, 4), ("w", 8, 1)]
    assert cells.bytes[:9] == bytes((0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8))


def test_a_word_to_byte_ports_becomes_bytes() -> None:
    bus, cells = Bus(), Cells(4)
    bus.add(region("io", 0x40, cells, 1))
    assert bus.port_read(0x41, 2, 0) == 0x0201
    assert cells.seen == [("r", 1, 1), ("r", 2, 1)]


def test_an_access_over_the_end_never_reaches_past_it() -> None:
    bus, cells = Bus(), Cells(4)
    bus.add(region("mmio", 0x1000, cells, 8))
    assert bus.mmio_read(0x1002, 4, 0) == 0xFFFF0302
    assert cells.seen == [("r", 2, 2)]
    assert bus.unclaimed == {"mmio read 0x1000": 1}


def test_an_access_over_two_neighbours_reaches_both() -> None:
    bus, first, second = Bus(), Cells(2), Cells(2)
    bus.add(region("io", 0x10, first))
    bus.add(region("io", 0x12, second))
    assert bus.port_read(0x11, 2, 0) == 0x0001
    assert first.seen == [("r", 1, 1)] and second.seen == [("r", 0, 1)]


def test_nobody_reads_as_ones_and_swallows_writes_and_is_told() -> None:
    told: list[Unclaimed] = []
    bus = Bus(told.append)
    assert bus.port_read(0x2E9, 1, 7) == 0xFF
    assert bus.port_read(0x2E9, 4, 7) == 0xFFFF_FFFF
    assert bus.mmio_read(0xFED8_0123, 8, 8) == 0xFFFF_FFFF_FFFF_FFFF
    bus.mmio_write(0xFED8_0120, 4, 5, 9)
    assert bus.unclaimed == {"io read 0x2e8": 2, "mmio read 0xfed80000": 1, "mmio write 0xfed80000": 1}
    assert told[-1] == Unclaimed("mmio", True, 0xFED8_0120, 4, 9)


def test_ports_wrap_at_64_ki() -> None:
    bus, cells = Bus(), Cells(2)
    bus.add(region("io", 0, cells, 1))
    assert bus.port_read(0xFFFE, 4, 0) == 0x0100_FFFF


def test_the_counters_are_bounded_against_a_guest_that_walks_memory() -> None:
    bus = Bus()
    for page in range(10_000):
        bus.mmio_read(page << 12, 4, 0)
    assert len(bus.unclaimed) <= 4097
    assert bus.unclaimed["mmio read elsewhere"] == 10_000 - 4096


@pytest.mark.parametrize("base, size", [(0x0F, 2), (0x10, 4), (0x13, 1), (0x08, 32)])
@pytest.mark.parametrize("kind", ["io", "mmio"])
def test_overlaps_are_refused_and_leave_nothing_behind(kind: str, base: int, size: int) -> None:
    bus, cells = Bus(), Cells(4)
    bus.add(region(kind, 0x10, cells))
    with pytest.raises(ConfigError, match="overlaps"):
        bus.add(region(kind, base, Cells(size)))
    assert bus.at(kind, 0x13).read == cells.read  # type: ignore[arg-type, union-attr]
    assert bus.at(kind, 0x0F) is None  # type: ignore[arg-type]
    assert bus.at(kind, 0x14) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        region("io", 0xFFFF, Cells(2)),
        region("io", -1, Cells(1)),
        region("io", 0, Cells(0)),
        region("io", 0, Cells(8), 8),
        region("mmio", 0, Cells(8), 3),
    ],
)
def test_malformed_regions_are_refused(bad: Region) -> None:
    with pytest.raises(ConfigError):
        Bus().add(bad)


def test_a_removed_region_is_gone_and_cannot_be_removed_twice() -> None:
    bus, cells = Bus(), Cells(4)
    for kind in ("io", "mmio"):
        r = region(kind, 0x20, cells)
        bus.add(r)
        bus.remove(r)
        assert bus.read(kind, 0x20, 1, 0) == 0xFF
        with pytest.raises(ConfigError, match="not registered"):
            bus.remove(r)
        bus.add(r)  # and its place is free again


def test_counters_survive_save_and_load() -> None:
    bus, other = Bus(), Bus()
    bus.port_read(1, 1, 0)
    other.load(bus.state())
    assert other.unclaimed == {"io read 0x0": 1}
    other.port_read(1, 1, 0)
    assert bus.unclaimed == {"io read 0x0": 1}, "the loaded counters are a copy"


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.sampled_from((1, 2, 4, 8))), max_size=6),
    st.integers(0, 60),
    st.sampled_from((1, 2, 4, 8)),
)
def test_any_access_reads_what_its_bytes_read(
    layout: list[tuple[int, int, int]], address: int, size: int
) -> None:
    bus = Bus()
    for base, length, width in layout:
        try:
            bus.add(region("mmio", base, Cells(length), width))
        except ConfigError:
            continue
    whole = bus.mmio_read(address, size, 0)
    parts = bytes(bus.mmio_read(address + i, 1, 0) for i in range(size))
    assert whole == int.from_bytes(parts, "little")


def test_plain_copies_deeply_and_refuses_what_json_would_change() -> None:
    inner = [1, 2]
    data = {"a": inner, "b": {"c": inner}}
    copied = plain(data)
    inner.append(3)
    assert copied == {"a": [1, 2], "b": {"c": [1, 2]}}
    with pytest.raises(TypeError, match="tuple"):
        plain({"x": (1, 2)})
