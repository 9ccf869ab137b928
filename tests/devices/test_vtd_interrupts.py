"""VT-d: interrupt remapping of MSI and of the I/O APIC, its faults, its cache."""

from __future__ import annotations

import pytest

from emu.dma import MSI_BASE
from tests.devices.dma_rig import (
    CFI,
    DEVICE,
    FSTS,
    IQH,
    IRE,
    IRTA,
    SIRTP,
    TABLE,
    Remapping,
)  # fmt: skip

EIME = 1 << 11
PRESENT, QUIET = 1, 2


@pytest.fixture
def r() -> Remapping:
    return Remapping()


def on(r: Remapping, size: int = 7, eime: bool = False) -> None:
    """A table of 2 << ``size`` entries."""
    r.w(IRTA, TABLE | size | (EIME if eime else 0), 8)
    r.command(SIRTP)
    r.command(IRE)


def irte(r: Remapping, index: int, low: int, high: int = 0) -> None:
    r.ram.put64(TABLE + 16 * index, low, high)


def address(index: int, subhandle: bool = False) -> int:
    return MSI_BASE | (index & 0x7FFF) << 5 | 0x10 | (8 if subhandle else 0) | index >> 15 << 2


def send(r: Remapping, at: int, data: int = 0, source: int = DEVICE) -> None:
    r.port.write(source, at, data.to_bytes(4, "little"), 0)


def fault(r: Remapping) -> tuple[int, int, int]:
    """(reason, index, source) of the only record, whose other bits must be 0."""
    ((low, high),) = r.records()
    reason, source = high >> 32 & 0xFF, high & 0xFFFF
    assert high == 1 << 63 | reason << 32 | source and low & (1 << 48) - 1 == 0
    assert r.bus.delivered == [] and r.bus.messages == []
    return reason, low >> 48, source


def test_off_means_what_it_says(r: Remapping) -> None:
    send(r, MSI_BASE | 0x1000, 0x4041)
    send(r, address(5), 0)
    assert r.bus.messages == [(MSI_BASE | 0x1000, 0x4041), (address(5), 0)]


@pytest.mark.parametrize(
    ("low", "expected"),
    [
        (0x0000_0300_0041_0001, (0, 0x41, 3, False, False)),
        (0x0000_0300_0041_0005, (0, 0x41, 3, True, False)),
        (0x0000_0300_0041_0011, (0, 0x41, 3, False, True)),
        (0x0000_0300_0041_0021, (1, 0x41, 3, False, False)),
        (0x0000_0300_0041_0081, (4, 0x41, 3, False, False)),
        (0x0000_0300_0041_00A1, (5, 0x41, 3, False, False)),
        (0x0000_0300_0041_00E1, (7, 0x41, 3, False, False)),
        (0x0000_0300_0041_000D, (1, 0x41, 3, True, False)),
        (0x0000_0300_0041_0009, (0, 0x41, 3, False, False)),
        (0x0000_FF00_0041_0001, (0, 0x41, 0xFFFF_FFFF, False, False)),
        (0x0000_FF00_0041_0005, (0, 0x41, 0xFF, True, False)),
        (0x0000_0300_00FF_0F01, (0, 0xFF, 3, False, False)),
    ],
)
def test_what_an_entry_says_is_delivered(
    r: Remapping, low: int, expected: tuple[int, int, int, bool, bool]
) -> None:
    irte(r, 9, low)
    on(r)
    send(r, address(9), 0xFFFF_FFFF)
    assert r.bus.take() == [expected]


def test_extended_destinations(r: Remapping) -> None:
    irte(r, 0, 0x1234_5678_0041_0001)
    irte(r, 1, 0x0000_00FF_0041_0001)
    on(r, eime=True)
    send(r, address(0))
    send(r, address(1))
    assert [d[2] for d in r.bus.take()] == [0x1234_5678, 0xFF]


def test_handles_and_subhandles(r: Remapping) -> None:
    for index in (0, 0x7FFF, 0x8000, 0xFFFF):
        r.ram.put64(TABLE + 16 * index, 0x0000_0300_0000_0001 | (index & 0xFF) << 16, 0)
    on(r, size=15)
    for index in (0, 0x7FFF, 0x8000, 0xFFFF):
        send(r, address(index), 3)
    send(r, address(0x7FF0, subhandle=True), 0xF)
    send(r, address(0x8000, subhandle=True), 0x7FFF)
    assert [d[1] for d in r.bus.take()] == [0, 0xFF, 0, 0xFF, 0xFF, 0xFF]
    send(r, address(0xFFFF, subhandle=True), 1)
    assert fault(r) == (0x21, 0, DEVICE), "beyond the largest table"


def test_all_bits_of_an_index_are_recorded(r: Remapping) -> None:
    on(r, size=15)
    for index in (0x5A5A, 0xA5A5, 0xFFFF):
        send(r, address(index))
        assert fault(r) == (0x22, index, DEVICE)
        r.clear_faults()


@pytest.mark.parametrize(
    ("reason", "low", "high"),
    [
        (0x22, 0x0000_0300_0041_0000, 0),
        (0x24, 0x0000_0300_0041_1001, 0),
        (0x24, 0x0000_0300_0041_4001, 0),
        (0x24, 0x0000_0300_0041_8001, 0),
        (0x24, 0x0000_0300_0141_0001, 0),
        (0x24, 0x0000_0300_8041_0001, 0),
        (0x24, 0x0001_0300_0041_0001, 0),
        (0x24, 0x0000_0301_0041_0001, 0),
        (0x24, 0x0000_0300_0041_0001, 1 << 20),
        (0x24, 0x0000_0300_0041_0001, 1 << 63),
        (0x24, 0x0000_0300_0041_0001, 3 << 18),
        (0x24, 0x0000_0300_0041_0061, 0),
        (0x24, 0x0000_0300_0041_00C1, 0),
        (0x26, 0x0000_0300_0041_0001, 1 << 18 | 0x19),
    ],
)
@pytest.mark.parametrize("quiet", [False, True])
def test_each_bad_entry_is_recorded_to_the_bit(
    r: Remapping, reason: int, low: int, high: int, quiet: bool
) -> None:
    irte(r, 9, low | (QUIET if quiet else 0), high)
    on(r)
    send(r, address(9))
    if quiet:
        assert r.records() == [] and r.bus.delivered == []
    else:
        assert fault(r) == (reason, 9, DEVICE)
    assert bool(r.unit.s.entries) == (reason == 0x26), "only what is valid is cached"


def test_requests_that_never_reach_an_entry(r: Remapping) -> None:
    on(r, size=3)
    for at, data, expected in (
        (address(16), 0, (0x21, 16, DEVICE)),
        (address(15, subhandle=True), 1, (0x21, 16, DEVICE)),
        (address(1, subhandle=True), 0x10001, (0x20, 0, DEVICE)),
        (MSI_BASE | 0x1000, 0x4041, (0x25, 0, DEVICE)),
    ):
        send(r, at, data)
        assert fault(r) == expected
        r.clear_faults()
    r.w(IRTA, 0x8000_0000 | 3, 8)
    r.command(SIRTP)
    send(r, address(3))
    assert fault(r) == (0x23, 3, DEVICE)


@pytest.mark.parametrize(
    ("high", "accepted"),
    [
        (1 << 18 | 0x18, {0x18}),
        (1 << 18 | 1 << 16 | 0x18, {0x18, 0x1C}),
        (1 << 18 | 2 << 16 | 0x19, {0x19, 0x1B, 0x1D, 0x1F}),
        (1 << 18 | 3 << 16 | 0x1A, set(range(0x18, 0x20))),
        (1 << 18 | 0x0118, {0x118}),
        (2 << 18 | 0x0001, {*range(0x10, 0x28), 0x118}),
        (2 << 18 | 0x0101, {0x118}),
        (2 << 18 | 0x0100, set()),
        (0x18, {*range(0x10, 0x28), 0x118}),
    ],
)
def test_who_may_use_an_entry(r: Remapping, high: int, accepted: set[int]) -> None:
    irte(r, 9, 0x0000_0300_0041_0001, high)
    on(r)
    got = set()
    for source in (*range(0x10, 0x28), 0x118):
        send(r, address(9), source=source)
        if r.bus.take():
            got.add(source)
    assert got == accepted


def test_compatibility_format_needs_leave(r: Remapping) -> None:
    on(r)
    r.command(CFI)
    send(r, MSI_BASE | 0x1000, 0x4041)
    assert r.bus.messages == [(MSI_BASE | 0x1000, 0x4041)]
    r.off(CFI)
    send(r, MSI_BASE | 0x1000, 0x4041)
    assert len(r.bus.messages) == 1 and len(r.records()) == 1


def test_extended_mode_blocks_compatibility_format(r: Remapping) -> None:
    on(r, eime=True)
    r.command(CFI)
    send(r, MSI_BASE | 0x1000, 0x4041)
    assert fault(r) == (0x25, 0, DEVICE)


def test_an_entry_stays_until_it_is_invalidated(r: Remapping) -> None:
    for index in range(16):
        irte(r, index, 0x0000_0300_0041_0001)
    on(r)
    for index in range(16):
        send(r, address(index))
    r.bus.take()
    for index in range(16):
        irte(r, index, 0)
    r.command(SIRTP)
    send(r, address(3))
    assert len(r.bus.take()) == 1, "stale"
    r.queue_on()

    def left() -> set[int]:
        return {int(key) for key in r.unit.s.entries}

    r.submit(4 | 1 << 4 | 5 << 32)
    assert left() == set(range(16)) - {5}
    r.submit(4 | 1 << 4 | 2 << 27 | 10 << 32)
    assert left() == set(range(16)) - {5, 8, 9, 10, 11}
    send(r, address(10))
    assert fault(r)[:2] == (0x22, 10)
    r.submit(4 | 1 << 4 | 31 << 27)
    assert left() == set()
    irte(r, 1, 0x0000_0300_0041_0001)
    send(r, address(1))
    assert left() == {1}
    r.submit(4)
    assert left() == set() and r.r(IQH, 8) == 64 and r.r(FSTS) & 0x10 == 0


def test_messages_are_told(r: Remapping) -> None:
    seen: list[tuple[int, ...]] = []
    r.port.message_observers.append(lambda *m: seen.append(m))
    irte(r, 9, 0x0000_0300_0041_0001)
    on(r)
    send(r, address(9), 5)
    send(r, MSI_BASE | 0x1000, 0x4041)
    assert seen == [(0, DEVICE, address(9), 5, 0), (0, DEVICE, MSI_BASE | 0x1000, 0x4041, 0x25)]
    assert len(r.log) == 0, "they are no memory accesses"
