"""Bus mastering, power states, function reset, and bridges."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from emu.clock import Clock
from emu.devices.acpipm import ResetControl
from emu.devices.device import Line
from emu.devices.pci import COMMAND_MASTER, Bar, PciFunction, PciHost, PciState, intx_gsi
from emu.devices.pcibridge import PciBridge
from emu.dma import DmaPort
from emu.errors import ConfigError
from tests.devices.dma_rig import FakeRam, InterruptBus
from tests.devices.rig import Rig, Wire

ECAM, ONES = 0xB0000000, 0xFFFFFFFF
BAR, SECOND_BAR = 0xC0000000, 0xC1000000


@dataclass
class CardState(PciState):
    value: int = 0


class Card(PciFunction):
    """A bus master with one register, a power management capability and a way to reset it."""

    s: CardState

    def __init__(
        self, clock: Clock, slot: int, name: str, *, soft: bool = True, express: bool = False, pin: int = 1
    ) -> None:
        super().__init__(
            name, clock, slot, vendor=0x1234, device=0x5678, class_code=0x020000, pin=pin, express=express
        )
        self.s = CardState(bytes(self.size))
        self.allow(4, 2, COMMAND_MASTER)
        self.add_bar(Bar(0, "mmio", 0x1000, self._read, self._write))
        self.add_bar(Bar(1, "io", 0x20, self._read, self._write))
        self.add_msi()
        self.pm = self.add_power_management(no_soft_reset=not soft)
        self.reset_at = self.add_express(0) if express else self.add_function_reset()

    def reset(self, now: int) -> None:
        self.s = CardState(self.s.config)
        super().reset(now)

    def _read(self, offset: int, size: int, now: int) -> int:
        return self.s.value

    def _write(self, offset: int, size: int, value: int, now: int) -> None:
        self.s.value = value


class Board(Rig):
    """A host with RAM, and slots."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[int, Wire] = {}
        self.ram = FakeRam()
        self.interrupts = InterruptBus()
        reset = ResetControl(self.clock, lambda kind, now: None)
        self.dma = DmaPort(self.ram, self.interrupts)
        self.sources: list[int] = []
        self.dma.observers.append(lambda tick, requester, *rest: self.sources.append(requester))
        self.host = PciHost(self.clock, self.bus, reset, self.line, self.dma)
        self.add(self.host)

    def line(self, gsi: int) -> Line:
        return self.lines.setdefault(gsi, Wire())

    def levels(self) -> set[int]:
        return {gsi for gsi, wire in self.lines.items() if wire.level}

    def cfg(self, where: int, register: int, size: int = 4) -> int:
        return self.read(ECAM | where << 12 | register, size)

    def set(self, where: int, register: int, value: int, size: int = 4) -> None:
        self.write(ECAM | where << 12 | register, value, size)


@pytest.fixture
def b() -> Board:
    return Board()


def card(b: Board, slot: int = 3, name: str = "card", **kind: bool) -> tuple[Card, int]:
    """A card that decodes and masters the bus; and where its configuration space is."""
    made = Card(b.clock, slot, name, **kind)
    b.host.plug(made)
    b.set(made.devfn, 0x10, BAR)
    b.set(made.devfn, 0x14, 0x5000)
    b.set(made.devfn, 4, 7, 2)
    return made, made.devfn


# --- bus mastering ---


def test_a_bus_master_reads_writes_and_signals(b: Board) -> None:
    c, at = card(b)
    c.dma_write(0x1000, b"abc", 0)
    assert c.dma_read(0x1000, 4, 0) == b"abc\0" and b.ram.writers == ["dma:card"]
    b.set(at, c.msi_at + 4, 0xFEE01000)
    b.set(at, c.msi_at + 12, 0x4041)
    b.set(at, c.msi_at + 2, 1, 2)
    c.send_msi(0)
    assert b.interrupts.messages == [(0xFEE01000, 0x4041)]
    assert b.sources == [0x18, 0x18]


def test_what_is_no_bus_master_does_nothing(b: Board) -> None:
    c, at = card(b)
    b.ram.put(0x1000, b"abc")
    b.set(at, c.msi_at + 4, 0xFEE01000)
    b.set(at, c.msi_at + 2, 1, 2)
    b.set(at, 4, 3, 2)
    c.dma_write(0x1000, b"xyz", 0)
    c.send_msi(0)
    assert c.dma_read(0x1000, 3, 0) == b"\xff\xff\xff"
    assert b.ram.get(0x1000, 3) == b"abc" and b.interrupts.messages == [] and b.sources == []


def test_before_it_is_plugged_it_does_nothing(b: Board) -> None:
    c = Card(b.clock, 3, "loose")
    c.config_write(4, 2, 4, 0)
    c.dma_write(0, b"x", 0)
    assert c.dma_read(0, 1, 0) == b"\xff"


def test_a_message_to_somewhere_else_is_a_write(b: Board) -> None:
    c, at = card(b)
    b.set(at, c.msi_at + 4, 0x2000)
    b.set(at, c.msi_at + 12, 0x4041)
    b.set(at, c.msi_at + 2, 1, 2)
    c.send_msi(0)
    assert b.ram.get(0x2000, 4) == b"\x41\x40\0\0" and b.interrupts.messages == []


def test_no_pin_while_messages_are_enabled(b: Board) -> None:
    c, at = card(b)
    c.set_intx(1, 0)
    assert b.levels() == {intx_gsi(3, 0)}
    b.set(at, c.msi_at + 2, 1, 2)
    assert b.levels() == set() and b.cfg(at, 6, 2) & 8, "still wanted"
    b.set(at, c.msi_at + 2, 0, 2)
    assert b.levels() == {intx_gsi(3, 0)}


# --- power ---


def test_in_d3_there_is_configuration_space_and_nothing_else(b: Board) -> None:
    c, at = card(b)
    c.s.value = 9
    c.set_intx(1, 0)
    b.set(at, c.pm + 4, 3, 2)
    assert (b.cfg(at, 0), b.cfg(at, c.pm + 4, 2)) == (0x56781234, 3)
    assert b.read(BAR) == ONES and b.inb(0x5000) == 0xFF
    assert b.levels() == set()
    c.dma_write(0x1000, b"x", 0)
    assert b.sources == []


@pytest.mark.parametrize("soft", [True, False])
def test_back_in_d0(b: Board, soft: bool) -> None:
    c, at = card(b, soft=soft)
    c.s.value = 9
    b.set(at, c.pm + 4, 3, 2)
    b.set(at, c.pm + 4, 0, 2)
    if soft:
        assert c.s == CardState(bytes(c.initial)), "reset on the way"
        assert b.read(BAR) == ONES
    else:
        assert b.read(BAR) == 9 and b.cfg(at, c.pm + 4, 2) == 8


def test_states_that_are_not_offered(b: Board) -> None:
    c, at = card(b)
    for state in (1, 2):
        b.set(at, c.pm + 4, state, 2)
        assert b.cfg(at, c.pm + 4, 2) == 0
    b.set(at, c.pm + 4, 3, 2)
    b.set(at, c.pm + 4, 1, 2)
    assert b.cfg(at, c.pm + 4, 2) == 3


# --- function reset ---


@pytest.mark.parametrize("express", [False, True])
def test_function_reset_is_power_on(b: Board, express: bool) -> None:
    c, at = card(b, express=express)
    other, other_at = card(b, 4, "other")
    b.set(other_at, 0x10, SECOND_BAR)
    c.s.value = other.s.value = 9
    c.set_intx(1, 0)
    b.set(at, 0x3C, 0x55, 1)
    register, bit = (c.reset_at + 8, 1 << 15) if express else (c.reset_at + 4, 1)
    b.set(at, register, b.cfg(at, register, 2), 2)
    assert b.read(BAR) == 9, "nothing happens without the bit"
    b.set(at, register, bit, 2)
    assert c.s == CardState(bytes(c.initial))
    assert b.read(BAR) == ONES and b.levels() == set() and b.cfg(at, register, 2) & bit == 0
    assert b.read(SECOND_BAR) == 9 and b.cfg(other_at, 4, 2) == 7, "nobody else is reset"


def test_function_reset_is_announced(b: Board) -> None:
    c, at = card(b)
    assert b.cfg(at, c.reset_at, 4) == 0x03060013, "advanced features, six bytes, TP and FLR"
    e, at = card(b, 4, "express", express=True)
    assert b.cfg(at, e.reset_at + 4) >> 28 & 1
    assert b.cfg(at, e.reset_at) & 0xFF == 0x10


# --- bridges ---


def bridged(b: Board, conventional: bool = False, slot: int = 0, pin: int = 1) -> tuple[PciBridge, Card]:
    """A bridge at 00:01.0 with bus 5 behind it, and a card there with its BARs inside the windows."""
    bridge = PciBridge(b.clock, 1, conventional=conventional)
    b.host.plug(bridge)
    made = Card(b.clock, slot, "card", pin=pin)
    bridge.plug(made)
    at = bridge.devfn
    b.set(at, 0x18, 0x050500)
    b.set(at, 0x1C, 0x5050, 2)
    b.set(at, 0x20, 0xC0F0C000)
    b.set(at, 0x24, 0xFFF1, 4)
    b.set(at, 4, 7, 2)
    b.set(0x500 | made.devfn, 0x10, BAR)
    b.set(0x500 | made.devfn, 0x14, 0x5000)
    b.set(0x500 | made.devfn, 4, 7, 2)
    return bridge, made


def test_configuration_space_is_where_bus_numbers_say(b: Board) -> None:
    bridge, _ = bridged(b)
    assert b.cfg(0x500, 0) == 0x56781234
    assert [b.cfg(bus << 8, 0) for bus in (1, 4, 6, 255)] == [ONES] * 4
    assert b.cfg(0x501, 0) == b.cfg(0x508, 0) == ONES
    b.set(bridge.devfn, 0x18, 0x090700)
    assert (b.cfg(0x700, 0), b.cfg(0x800, 0)) == (0x56781234, ONES)
    b.set(bridge.devfn, 0x18, 0x060700)
    assert b.cfg(0x700, 0) == ONES, "subordinate below secondary"
    b.set(bridge.devfn, 0x18, 0x000000)
    assert b.cfg(0x000, 0) == ONES, "bus 0 is the host's"


def test_the_other_way_in_reaches_behind_bridges(b: Board) -> None:
    bridged(b)
    b.bus.port_write(0xCF8, 4, 1 << 31 | 5 << 16, 0)
    assert b.bus.port_read(0xCFC, 4, 0) == 0x56781234
    for bus, value in ((5, 0x55), (4, 0x44), (0x25, 0x77)):
        b.bus.port_write(0xCF8, 4, 1 << 31 | bus << 16 | 0x3C, 0)
        b.bus.port_write(0xCFC, 1, value, 0)
    assert b.cfg(0x500, 0x3C, 1) == 0x55, "the other buses are not bus 5"


def test_a_window_above_4_gib(b: Board) -> None:
    bridge, made = bridged(b)
    at = bridge.devfn
    big = 0x12_3450_0000
    made.add_bar(Bar(2, "mmio", 1 << 20, made._read, made._write, prefetchable=True, wide=True))
    made.reset(0)
    b.set(0x500, 4, 2, 2)
    b.set(0x500, 0x18, big & 0xFFFFFFFF)
    b.set(0x500, 0x1C, big >> 32)
    assert b.read(big) == ONES
    b.set(at, 0x28, 0x12)
    b.set(at, 0x2C, 0x12)
    b.set(at, 0x24, 0x3451_3451)
    assert b.read(big) == 0
    b.set(at, 0x2C, 0x11)
    assert b.read(big) == ONES, "the limit is below"
    b.set(at, 0x2C, 0x13)
    assert b.read(big) == 0


def test_header_of_a_bridge(b: Board) -> None:
    bridge, _ = bridged(b)
    at = bridge.devfn
    assert b.cfg(at, 8) >> 8 == 0x060400 and b.cfg(at, 0xE, 1) == 1
    b.set(at, 0x1C, 0xFFFF, 2)
    assert b.cfg(at, 0x1C, 2) == 0xF0F0
    b.set(at, 0x20, ONES)
    assert b.cfg(at, 0x20) == 0xFFF0FFF0
    b.set(at, 0x24, ONES)
    assert b.cfg(at, 0x24) == 0xFFF1FFF1
    b.set(at, 0x10, ONES)
    assert b.cfg(at, 0x10) == 0, "no BAR"
    express = next(c for c in capabilities(b, at) if b.cfg(at, c, 1) == 0x10)
    assert b.cfg(at, express + 2, 2) >> 4 & 15 == 4, "a root port"


def capabilities(b: Board, where: int) -> list[int]:
    out = []
    at = b.cfg(where, 0x34, 1)
    while at:
        assert at not in out and at >= 0x40
        out.append(at)
        at = b.cfg(where, at + 1, 1)
    return out


def test_bars_are_decoded_inside_windows_only(b: Board) -> None:
    bridge, made = bridged(b)
    made.s.value = 0x77
    at = bridge.devfn
    assert b.read(BAR) == 0x77 and b.inb(0x5000) == 0x77
    b.set(at, 0x20, 0xC1F0C100)
    assert b.read(BAR) == ONES
    b.set(at, 0x24, 0xC0F1C001)
    assert b.read(BAR) == 0x77, "the prefetchable window passes it as well"
    b.set(at, 0x28, 1)
    assert b.read(BAR) == ONES, "its base is above its limit"
    b.set(at, 0x28, 0)
    b.set(at, 0x1C, 0x6060, 2)
    assert b.inb(0x5000) == 0xFF
    b.set(at, 4, 5, 2)
    assert b.read(BAR) == ONES
    b.set(at, 4, 6, 2)
    b.set(at, 0x1C, 0x5050, 2)
    assert b.inb(0x5000) == 0xFF and b.read(BAR) == 0x77


def test_requests_pass_while_the_bridge_is_a_master(b: Board) -> None:
    bridge, made = bridged(b)
    made.dma_write(0x1000, b"a", 0)
    b.set(bridge.devfn, 4, 3, 2)
    made.dma_write(0x1000, b"b", 0)
    assert made.dma_read(0x1000, 1, 0) == b"\xff"
    assert b.ram.get(0x1000, 1) == b"a" and b.sources == [0x500]


@pytest.mark.parametrize(("conventional", "source"), [(False, 0x510), (True, 0x008)])
def test_requester_ids_behind_a_bridge(b: Board, conventional: bool, source: int) -> None:
    _, made = bridged(b, conventional, slot=2)
    assert made.requester == source
    made.dma_read(0x1000, 1, 0)
    assert b.sources == [source]


@pytest.mark.parametrize("pin", [1, 2, 3, 4])
@pytest.mark.parametrize("slot", [0, 1, 3, 30])
def test_pins_turn_with_the_slot_behind(b: Board, slot: int, pin: int) -> None:
    _, made = bridged(b, slot=slot, pin=pin)
    made.set_intx(1, 0)
    assert b.levels() == {20 + (1 + slot + pin - 1) % 4}


def test_secondary_bus_reset(b: Board) -> None:
    bridge, made = bridged(b)
    made.s.value = 9
    b.set(bridge.devfn, 0x3E, 0x40, 2)
    assert made.s == CardState(bytes(made.initial))
    assert b.cfg(0x500, 0) == ONES, "held in reset"
    b.set(bridge.devfn, 0x3E, 0, 2)
    assert b.cfg(0x500, 0) == 0x56781234 and b.cfg(0x500, 0x10) == 0
    assert b.cfg(bridge.devfn, 0x18) == 0x050500, "the bridge itself is not reset"


def test_a_bridge_in_d3_hides_what_is_behind(b: Board) -> None:
    bridge, made = bridged(b)
    b.set(bridge.devfn, bridge.power_at + 4, 3, 2)
    assert b.cfg(0x500, 0) == ONES and b.read(BAR) == ONES and not made.bus_master
    b.set(bridge.devfn, bridge.power_at + 4, 0, 2)
    assert b.cfg(0x500, 0) == 0x56781234 and b.read(BAR) == 0 and made.bus_master


def test_a_loaded_bridge_decodes_what_its_configuration_says(b: Board) -> None:
    bridge, made = bridged(b)
    states = [d.state() for d in (bridge, made)]
    bridge.reset(0)
    made.reset(0)
    assert b.read(BAR) == ONES
    for device, state in zip((bridge, made), states, strict=True):
        device.load(state)
    b.host.remap()
    assert b.read(BAR) == 0 and made.requester == 0x500


def test_impossible_places_behind_a_bridge(b: Board) -> None:
    with pytest.raises(ConfigError, match="plugged first"):
        PciBridge(b.clock, 2, "loose").plug(Card(b.clock, 0, "a"))
    bridge, _ = bridged(b)
    with pytest.raises(ConfigError, match="taken"):
        bridge.plug(Card(b.clock, 0, "twin"))
    with pytest.raises(ConfigError, match="not nested"):
        bridge.plug(PciBridge(b.clock, 1, "inner"))
