"""The board with a remapping unit, a bridge and edu: who talks through whom, and complete state."""

from __future__ import annotations

import json

import pytest

from emu.devices.edu import Edu
from emu.devices.platform import EXTRAS
from emu.devices.vtd import IOAPIC_SOURCE, Vtd
from tests.devices.dma_rig import IRE, ROOT, SIRTP, TABLE, FakeRam
from tests.devices.test_platform import APIC, ECAM, IOAPIC, Pc, _changes

VTD = 0xFED90000
EDU, BAR = ECAM | 3 << 15, 0xC0000000
EDU_PIN = 23
ALL = ("vtd", "bridge", "edu", "bridge/edu")


class Board(Pc):
    """All of it, with edu decoding at `BAR` and mastering the bus."""

    def __init__(self, ncpus: int = 1) -> None:
        self.ram = FakeRam()
        super().__init__(ncpus, ram=self.ram, extras=ALL)
        self.wr(EDU | 0x10, BAR)
        self.wr(EDU | 4, 6, 2)

    @property
    def vtd(self) -> Vtd:
        unit = self.p.extras["vtd"]
        assert isinstance(unit, Vtd)
        return unit

    def irte(self, index: int, low: int, high: int = 0) -> None:
        self.ram.put64(TABLE + 16 * index, low, high)

    def remapping_on(self, eime: bool = False) -> None:
        self.wr(VTD | 0xB8, TABLE | 7 | (1 << 11 if eime else 0), 8)
        self.wr(VTD | 0x18, SIRTP)
        self.wr(VTD | 0x18, IRE)

    def pin(self, low: int, high: int) -> None:
        """The entry of edu's pin in the I/O APIC."""
        for half, value in ((1, high), (0, low)):
            self.wr(IOAPIC, 0x10 + 2 * EDU_PIN + half)
            self.wr(IOAPIC + 0x10, value)

    def entry(self) -> int:
        return self.p.ioapic.s.redirection[EDU_PIN]

    def message(self, address: int, data: int) -> None:
        self.wr(EDU | 0x44, address)
        self.wr(EDU | 0x4C, data, 2)
        self.wr(EDU | 0x42, 1, 2)


@pytest.fixture
def b() -> Board:
    return Board()


def remappable(index: int) -> int:
    """Upper half of an I/O APIC entry."""
    return index << 17 | 1 << 16


def test_pins_are_remapped(b: Board) -> None:
    b.irte(5, 0x00000000_0071_0011, 1 << 18 | IOAPIC_SOURCE)
    b.remapping_on()
    b.pin(0x8000 | EDU_PIN, remappable(5))
    b.wr(BAR + 0x60, 1)
    assert b.ack() == 0x71, "the vector of the interrupt entry"
    assert b.entry() >> 14 & 1, "remote IRR"
    b.wr(APIC + 0xB0, 0)
    assert b.entry() >> 14 & 1, "the local APIC completed another vector than the pin's"
    b.wr(IOAPIC + 0x40, EDU_PIN)
    assert b.ack() == 0x71, "still asserted"
    b.wr(BAR + 0x64, 1)
    b.wr(APIC + 0xB0, 0)
    b.wr(IOAPIC + 0x40, EDU_PIN)
    assert b.pins == [0] and not b.entry() >> 14 & 1


def test_a_pin_with_the_vector_of_its_interrupt_entry_is_completed_by_the_local_apic(b: Board) -> None:
    b.irte(5, 0x0071_0011)
    b.remapping_on()
    b.pin(0x8071, remappable(5))
    b.wr(BAR + 0x60, 1)
    assert b.ack() == 0x71
    b.wr(BAR + 0x64, 1)
    b.wr(APIC + 0xB0, 0)
    assert not b.entry() >> 14 & 1 and b.pins == [0]


def test_bit_15_of_an_index(b: Board) -> None:
    b.irte(0x8005, 0x0072_0001)
    b.wr(VTD | 0xB8, TABLE | 15, 8)
    b.wr(VTD | 0x18, SIRTP)
    b.wr(VTD | 0x18, IRE)
    b.pin(1 << 11, remappable(5))
    b.wr(BAR + 0x60, 1)
    assert b.ack() == 0x72


def test_a_refused_pin_is_sent_and_lost(b: Board) -> None:
    b.irte(5, 0x0071_0011, 1 << 18 | 0x1234)
    b.remapping_on()
    b.pin(0x8000 | EDU_PIN, remappable(5))
    b.wr(BAR + 0x60, 1)
    assert b.pins == [0] and b.entry() >> 14 & 1
    assert b.rd(VTD | 0x208, 8) == 1 << 63 | 0x26 << 32 | IOAPIC_SOURCE
    b.irte(5, 0x0071_0011)
    b.wr(VTD | 0x90, 0x30000, 8)
    b.ram.put64(0x30000, 4, 0)
    b.wr(VTD | 0x18, IRE | 1 << 26)
    b.wr(VTD | 0x88, 16, 8)
    b.wr(IOAPIC + 0x40, EDU_PIN)
    assert b.ack() == 0x71, "completed by software, it is sent again"


def test_pins_in_compatibility_format_are_blocked(b: Board) -> None:
    b.remapping_on()
    b.pin(0x51, 0)
    b.wr(BAR + 0x60, 1)
    assert b.pins == [0]
    assert b.rd(VTD | 0x208, 8) >> 32 & 0xFF == 0x25
    b.wr(VTD | 0x18, IRE | 1 << 23)
    b.wr(BAR + 0x64, 1)
    b.wr(BAR + 0x60, 1)
    assert b.ack() == 0x51


def test_without_remapping_pins_work_as_ever(b: Board) -> None:
    b.pin(0x8051, 0)
    b.wr(BAR + 0x60, 1)
    assert b.ack() == 0x51
    b.wr(BAR + 0x64, 1)
    b.wr(APIC + 0xB0, 0)
    assert not b.entry() >> 14 & 1


def test_messages_are_remapped_and_checked(b: Board) -> None:
    b.irte(9, 0x0073_0001, 1 << 18 | 0x18)
    b.remapping_on()
    b.message(0xFEE00000 | 9 << 5 | 0x10, 0)
    b.wr(BAR + 0x60, 1)
    assert b.ack() == 0x73
    b.wr(APIC + 0xB0, 0)
    b.message(0xFEE00000, 0x55)
    b.wr(BAR + 0x60, 1)
    assert b.pins == [0], "compatibility format"


def test_destinations_of_32_bits() -> None:
    b = Board(3)
    for cpu in range(3):
        assert b.p.write_msr(cpu, 0x1B, 0xFEE00C00 | (0x100 if cpu == 0 else 0), 0)
        assert b.p.write_msr(cpu, 0x80F, 0x1FF, 0)
    b.irte(9, 2 << 32 | 0x0073_0001)
    b.irte(10, 0x2 << 32 | 0x0074_0005)
    b.remapping_on(eime=True)
    b.message(0xFEE00000 | 9 << 5 | 0x10, 0)
    b.wr(BAR + 0x60, 1)
    assert b.pins == [0, 0, 1] and b.ack(2) == 0x73
    b.message(0xFEE00000 | 10 << 5 | 0x10, 0)
    b.wr(BAR + 0x60, 1)
    assert b.pins == [0, 1, 0] and b.ack(1) == 0x74, "logical: bit 1 of cluster 0"


def test_dma_is_translated_by_requester(b: Board) -> None:
    b.ram.put64(ROOT, 0x11001, 0)
    b.ram.put64(0x11000 + 16 * 0x18, 0x20001, 7 << 8 | 1)
    b.ram.put64(0x20000, 0x21003)
    b.ram.put64(0x21000, 0x22003)
    b.ram.put64(0x22000 + 8 * 5, 0x80003)
    b.ram.put(0x80000, b"through")
    b.wr(VTD | 0x20, ROOT, 8)
    b.wr(VTD | 0x18, 1 << 30)
    b.wr(VTD | 0x18, 1 << 31)
    edu = b.p.extras["edu"]
    assert isinstance(edu, Edu)
    for register, value in ((0x80, 0x5000), (0x88, 0x40000), (0x90, 7), (0x98, 1)):
        b.wr(BAR + register, value)
    b.to(b.clock.deadline())
    assert edu.s.buffer[:7] == b"through"
    assert edu.dma_read(0x6000, 1, b.now) == b"\xff"
    assert b.rd(VTD | 0x208, 8) == 1 << 63 | 1 << 62 | 6 << 32 | 0x18


def test_only_with_the_unit_do_entries_have_an_index() -> None:
    for extras, kept in (((), 0xFF00_0000), (("vtd",), 0xFFFF_0000)):
        pc = Pc(extras=extras)
        pc.wr(IOAPIC, 0x11)
        pc.wr(IOAPIC + 0x10, 0xFFFF_FFFF)
        assert pc.rd(IOAPIC + 0x10) == kept


def test_every_field_of_every_device_survives_a_load() -> None:
    b = Board()
    b.ram.put64(ROOT, 0x11001, 0)
    b.ram.put64(0x11000 + 16 * 0x18, 2 << 2 | 1, 7 << 8 | 2)
    b.wr(VTD | 0x20, ROOT, 8)
    b.wr(VTD | 0x18, 1 << 30)
    b.wr(VTD | 0x18, 1 << 31)
    b.wr(BAR + 8, 5)
    assert b.vtd.translate(0x18, 0x1000, False, 0) == (0x1000, (1 << 48) - 0x1000, 0)
    b.vtd.s.pages = {"7": {"12:5": 0x80003}}
    b.vtd.s.entries = {"9": [1, 2]}
    state = b.p.state()
    assert set(ALL) <= set(state)
    count = 0
    for name in ALL:
        for changed in _changes(state[name]):
            b.p.load({**state, name: changed})
            assert b.p.state()[name] == changed, name
            count += 1
    assert count > 60
    b.p.load(state)
    assert b.copy().saved() == b.saved()


def test_reset_is_power_on() -> None:
    fresh = json.loads(Pc(ram=FakeRam(), extras=ALL).saved())
    b = Board()
    b.wr(BAR + 0x60, 1)
    b.wr(BAR + 8, 5)
    b.wr(VTD | 0x20, ROOT, 8)
    b.wr(VTD | 0x18, 1 << 30)
    b.wr(ECAM | 1 << 15 | 0x18, 0x010100)
    b.wr(ECAM | 1 << 20 | 0x10, 0xC1000000)
    b.p.reset(0)
    assert json.loads(b.saved())[0] == fresh[0] and b.clock.state() == []


def test_names() -> None:
    assert set(ALL) <= set(EXTRAS)
    names = [d.name for d in Board().p.devices]
    assert len(set(names)) == len(names)
