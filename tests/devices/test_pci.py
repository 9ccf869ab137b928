"""Configuration space through both ways in, BARs, capabilities, INTx and MSI."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from emu.clock import Clock
from emu.devices.acpipm import ResetControl
from emu.devices.device import Line
from emu.devices.pci import Bar, HostBridge, LpcBridge, PciFunction, PciHost, PciState, intx_gsi
from emu.dma import DmaPort
from emu.errors import ConfigError
from tests.devices.rig import Rig, Wire

ECAM = 0xB0000000
ONES = 0xFFFFFFFF


@dataclass
class CardState(PciState):
    value: int = 0


class Card(PciFunction):
    """A function with one register behind an MMIO BAR and behind an I/O BAR."""

    s: CardState

    def __init__(self, clock: Clock, slot: int = 3, name: str = "card", express: bool = False) -> None:
        super().__init__(
            name, clock, slot, vendor=0x1234, device=0x5678, class_code=0x020000, pin=1, express=express
        )
        self.s = CardState(bytes(self.size))
        self.add_bar(Bar(0, "mmio", 0x1000, self._read, self._write))
        self.add_bar(Bar(1, "io", 0x20, self._read, self._write))
        self.add_bar(Bar(2, "mmio", 1 << 20, self._read, self._write, prefetchable=True, wide=True))
        self.add_capability(0x09, b"\x08abcdef", b"\x00\xff")
        self.add_msi()

    def _read(self, offset: int, size: int, now: int) -> int:
        return self.s.value + offset

    def _write(self, offset: int, size: int, value: int, now: int) -> None:
        self.s.value = value


class Messages:
    """An interrupt bus that notes what arrives."""

    def __init__(self) -> None:
        self.got: list[tuple[int, int]] = []

    def message(self, address: int, data: int, now: int) -> bool:
        self.got.append((address, data))
        return True

    def deliver(self, mode: int, vector: int, destination: int, logical: bool, level: bool, now: int) -> bool:
        raise AssertionError("nothing is remapped")


class Board(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.power: list[str] = []
        self.lines: dict[int, Wire] = {}
        self.reset = ResetControl(self.clock, lambda kind, now: self.power.append(kind))
        self.messages = Messages()
        self.host = PciHost(self.clock, self.bus, self.reset, self.line, DmaPort(None, self.messages))
        self.add(self.host)
        self.host.plug(HostBridge(self.clock))
        self.host.plug(LpcBridge(self.clock))
        self.card = Card(self.clock)
        self.host.plug(self.card)

    def line(self, gsi: int) -> Line:
        return self.lines.setdefault(gsi, Wire())

    def inl(self, port: int, size: int = 4) -> int:
        return self.bus.port_read(port, size, self.now)

    def outl(self, port: int, value: int, size: int = 4) -> None:
        self.bus.port_write(port, size, value, self.now)

    def cfg(self, slot: int, register: int, size: int = 4) -> int:
        return self.read(ECAM | slot << 15 | register, size)

    def set(self, register: int, value: int, size: int = 4) -> None:
        self.write(ECAM | self.card.slot << 15 | register, value, size)


@pytest.fixture
def b() -> Board:
    return Board()


def test_both_ways_show_the_same(b: Board) -> None:
    for slot in range(32):
        for register in range(0, 256, 4):
            b.outl(0xCF8, 1 << 31 | slot << 11 | register)
            assert b.inl(0xCFC) == b.cfg(slot, register)


def test_narrow_accesses_of_mechanism_1(b: Board) -> None:
    b.outl(0xCF8, 0x80000000)
    assert (b.inl(0xCFC, 2), b.inl(0xCFE, 2)) == (0x8086, 0x29C0)
    assert [b.inb(0xCFC + i) for i in range(4)] == [0x86, 0x80, 0xC0, 0x29]


def test_disabled_or_narrow_address_writes_do_nothing(b: Board) -> None:
    b.outl(0xCF8, 0x00000000)
    assert b.inl(0xCFC) == ONES
    b.outl(0xCF8, 0x8000_0000)
    b.outl(0xCF8, 0x55, 1)
    b.outl(0xCFA, 0x55, 2)
    assert b.inl(0xCF8) == 0x8000_0000
    b.outl(0xCF8, ONES)
    assert b.inl(0xCF8) == 0x80FF_FFFC


def test_the_reset_register_lives_inside_the_address_port(b: Board) -> None:
    b.outl(0xCF8, 0x8000_0604)
    assert b.power == [], "a whole word is an address"
    b.outb(0xCF9, 0x06)
    assert b.power == ["reset"]
    b.outb(0xCF9, 0x02)
    assert b.inb(0xCF9) == 0x02
    assert b.inl(0xCF8) == 0x8000_0604
    assert b.inb(0xCF8) == 0xFF


def test_absent_functions_read_as_ones(b: Board) -> None:
    assert b.cfg(4, 0) == ONES
    assert b.read(ECAM | 31 << 15 | 1 << 12) == ONES
    assert b.read(ECAM | 1 << 20) == ONES, "bus 1"
    b.write(ECAM | 1 << 20 | 4, 7)


def test_identity_of_the_bridges(b: Board) -> None:
    assert (b.cfg(0, 0), b.cfg(0, 8)) == (0x29C08086, 0x06000000)
    assert (b.cfg(31, 0), b.cfg(31, 8)) == (0x29188086, 0x06010002)
    assert b.cfg(31, 0x0E, 1) == 0x80
    assert b.cfg(0, 0x60) | b.cfg(0, 0x64) << 32 == 0xB0000001, "PCIEXBAR enabled"
    assert b.cfg(31, 0x40) == 0x601, "PMBASE"
    b.write(ECAM | 0x60, 0)
    assert b.cfg(0, 0x60) == 0xB0000001, "and locked"


def test_conventional_functions_have_256_bytes_and_express_4096() -> None:
    rig = Board()
    assert rig.cfg(3, 0x100) == ONES
    rig.host.plug(Card(rig.clock, 5, "express", express=True))
    assert rig.cfg(5, 0x100) == 0
    assert rig.read(ECAM | 5 << 15 | 0xFFC) == 0


def test_read_only_registers(b: Board) -> None:
    for register in (0x00, 0x08, 0x0C, 0x2C):
        before = b.cfg(3, register)
        b.set(register, ONES)
        assert b.cfg(3, register) == before


def test_bar_sizing(b: Board) -> None:
    for register in (0x10, 0x14, 0x18, 0x1C, 0x20, 0x24):
        b.set(register, ONES)
    sizes = [b.cfg(3, r) for r in (0x10, 0x14, 0x18, 0x1C, 0x20, 0x24)]
    assert sizes == [0xFFFFF000, 0xFFFFFFE1, 0xFFF0000C, 0xFFFFFFFF, 0, 0]


def test_a_bar_decodes_only_when_enabled(b: Board) -> None:
    b.set(0x10, 0xC0000000)
    b.set(0x14, 0xC000)
    b.card.s.value = 0x100
    assert b.read(0xC0000008) == ONES
    b.set(4, 2, 2)
    assert b.read(0xC0000008) == 0x108
    assert b.inl(0xC004) == ONES
    b.set(4, 3, 2)
    assert b.inl(0xC004) == 0x104
    b.set(0x10, 0xC0100000)
    assert b.read(0xC0000008) == ONES
    assert b.read(0xC0100008) == 0x108
    b.set(4, 0, 2)
    assert b.read(0xC0100008) == ONES


def test_a_64_bit_bar_above_4_gib(b: Board) -> None:
    b.set(0x18, 0)
    b.set(0x1C, 0x80)
    b.set(4, 2, 2)
    assert b.read(0x80_0000_0010) == 0x10


def test_a_bar_on_top_of_a_device_of_the_board_decodes_nothing(b: Board) -> None:
    b.set(0x10, 0xC0000000)
    b.set(4, 2, 2)
    b.set(0x10, ECAM)
    assert b.read(ECAM) == 0x29C08086
    b.set(0x10, 0xC0000000)
    assert b.read(0xC0000004) == 4, "and comes back when moved away"


def test_the_lower_slot_wins_where_two_bars_overlap(b: Board) -> None:
    other = Card(b.clock, 2, "other")
    b.host.plug(other)
    other.s.value, b.card.s.value = 0x2000, 0x3000
    for slot in (3, 2):
        b.write(ECAM | slot << 15 | 0x10, 0xC0000000)
        b.write(ECAM | slot << 15 | 4, 2, 2)
    assert b.read(0xC0000000) == 0x2000
    b.write(ECAM | 2 << 15 | 4, 0, 2)
    assert b.read(0xC0000000) == 0x3000


def test_capability_list(b: Board) -> None:
    assert b.cfg(3, 0x06, 2) & 0x10
    at = b.cfg(3, 0x34, 1)
    seen = []
    while at:
        seen.append((at, b.cfg(3, at, 1)))
        at = b.cfg(3, at + 1, 1)
    assert seen == [(0x40, 0x09), (0x4C, 0x05)]
    b.set(0x40, ONES)
    assert b.cfg(3, 0x40) == 0xFF084C09, "only the allowed byte changes"


def test_intx_and_its_disable_bit(b: Board) -> None:
    wire = b.lines[intx_gsi(3, 0)]
    b.card.set_intx(1, 7)
    assert wire.level == 1 and b.cfg(3, 6, 2) & 8
    b.set(4, 1 << 10, 2)
    assert wire.level == 0 and b.cfg(3, 6, 2) & 8, "the status bit does not care"
    b.set(4, 0, 2)
    assert wire.level == 1
    b.card.set_intx(0, 8)
    assert wire.level == 0 and not b.cfg(3, 6, 2) & 8


def test_intx_wiring_of_q35() -> None:
    assert [intx_gsi(0, p) for p in range(4)] == [20, 21, 22, 23]
    assert [intx_gsi(3, p) for p in range(4)] == [23, 20, 21, 22]
    assert [intx_gsi(31, p) for p in range(4)] == [16, 17, 18, 19]


def test_msi_needs_enable_and_bus_master(b: Board) -> None:
    got = b.messages.got
    b.set(0x50, 0xFEE01000)
    b.set(0x58, 0x4041)
    b.card.send_msi(0)
    b.set(0x4E, 1, 2)
    b.card.send_msi(0)
    assert got == [] and b.card.msi_enabled
    b.set(4, 4, 2)
    b.card.send_msi(0)
    assert got == [(0xFEE01000, 0x4041)]


def test_error_status_bits_are_cleared_by_ones(b: Board) -> None:
    b.card.poke(6, 2, b.card.register(6, 2) | 0x2000)
    b.set(6, 0x0000, 2)
    assert b.cfg(3, 6, 2) & 0x2000
    b.set(6, 0x2000, 2)
    assert not b.cfg(3, 6, 2) & 0x2000


def test_interrupt_line_is_scratch(b: Board) -> None:
    b.set(0x3C, 0x0B, 1)
    assert b.cfg(3, 0x3C, 2) == 0x010B


def test_reset_unmaps_and_releases(b: Board) -> None:
    b.set(0x10, 0xC0000000)
    b.set(4, 2, 2)
    b.card.set_intx(1, 0)
    b.card.reset(0)
    assert b.read(0xC0000000) == ONES
    assert b.lines[intx_gsi(3, 0)].level == 0
    assert b.cfg(3, 0x10) == 0


def test_a_loaded_machine_decodes_what_its_configuration_says(b: Board) -> None:
    b.set(0x10, 0xC0000000)
    b.set(4, 2, 2)
    saved = b.card.state()
    b.set(4, 0, 2)
    b.card.load(saved)
    b.host.remap()
    assert b.read(0xC0000004) == 4


def test_impossible_functions_are_refused(b: Board) -> None:
    with pytest.raises(ConfigError, match="taken"):
        b.host.plug(Card(b.clock, 3, "twin"))
    with pytest.raises(ConfigError, match="no such place"):
        b.host.plug(Card(b.clock, 32, "beyond"))
    for size, kind in ((0x1001, "mmio"), (8, "mmio"), (2, "io"), (0, "io")):
        with pytest.raises(ConfigError, match="not possible"):
            b.card.add_bar(Bar(5, kind, size, lambda *a: 0, lambda *a: None))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no room"):
        b.card.add_capability(0x11, bytes(200))
    with pytest.raises(ConfigError, match="32 bits"):
        b.card.add_bar(Bar(4, "io", 8, lambda *a: 0, lambda *a: None, wide=True))
