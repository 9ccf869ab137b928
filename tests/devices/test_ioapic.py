"""82093AA by its data sheet."""

from __future__ import annotations

import pytest

from emu.devices.ioapic import IoApic
from emu.devices.lapic import ApicBus, LocalApic
from tests.devices.rig import Rig, Wire

BASE = 0xFEC00000
LEVEL, MASK, REMOTE = 1 << 15, 1 << 16, 1 << 14


class Board(Rig):
    def __init__(self) -> None:
        super().__init__()
        bus = ApicBus()
        self.wire = Wire()
        self.apics = [
            LocalApic(self.clock, i, bus, self.wire if i == 0 else Wire(), lambda *_: None) for i in range(2)
        ]
        self.apic = self.apics[0]
        for apic in self.apics:
            apic.virtual_wire(0)
        self.io = IoApic(self.clock, bus)
        self.add(self.io)

    def reg(self, index: int, value: int | None = None) -> int:
        self.write(BASE, index)
        if value is not None:
            self.write(BASE + 0x10, value)
        return self.read(BASE + 0x10)

    def route(self, pin: int, low: int, destination: int = 0) -> None:
        self.reg(0x11 + 2 * pin, destination << 24)
        self.reg(0x10 + 2 * pin, low)

    def pin(self, pin: int, level: int) -> None:
        self.io.set_pin(pin, level, self.now)

    def serve(self) -> int:
        vector = self.apic.acknowledge(self.now)
        self.apic.mmio_write(0xB0, 4, 0, self.now)
        return vector


@pytest.fixture
def b() -> Board:
    return Board()


def test_identity_and_power_on(b: Board) -> None:
    assert b.reg(1) == 0x00170020
    assert b.reg(0, 0xFFFFFFFF) == 0x0F000000
    assert b.reg(2) == 0x0F000000, "arbitration ID"
    assert all(b.reg(0x10 + 2 * p) == MASK for p in range(24))
    assert b.reg(0x40) == 0 and b.reg(3) == 0, "no such registers"
    b.reg(0x40, 5)


def test_writable_bits_of_an_entry(b: Board) -> None:
    assert b.reg(0x10, 0xFFFFFFFF) == 0x1AFFF
    assert b.reg(0x11, 0xFFFFFFFF) == 0xFF000000


def test_narrow_data_writes_do_nothing(b: Board) -> None:
    b.write(BASE, 0x10)
    b.write(BASE + 0x10, 0, 1)
    assert b.read(BASE + 0x10) == MASK


def test_edge(b: Board) -> None:
    b.route(4, 0x34)
    b.pin(4, 1)
    assert b.serve() == 0x34
    b.pin(4, 1)
    assert b.wire.level == 0, "still high, but no new edge"
    b.pin(4, 0)
    b.pin(4, 1)
    assert b.serve() == 0x34


def test_an_edge_on_a_masked_pin_is_lost(b: Board) -> None:
    b.route(4, 0x34 | MASK)
    b.pin(4, 1)
    b.route(4, 0x34)
    assert b.wire.level == 0


def test_level_until_it_falls(b: Board) -> None:
    b.route(9, 0x39 | LEVEL)
    b.pin(9, 1)
    assert b.reg(0x10 + 18) & REMOTE
    assert b.serve() == 0x39
    assert b.wire.level == 1, "asserted again with the EOI"
    b.pin(9, 0)
    assert b.serve() == 0x39, "one more was already on its way"
    assert b.wire.level == 0 and not b.reg(0x10 + 18) & REMOTE


def test_level_on_a_masked_pin_comes_with_unmasking(b: Board) -> None:
    b.route(9, 0x39 | LEVEL | MASK)
    b.pin(9, 1)
    assert b.wire.level == 0
    b.route(9, 0x39 | LEVEL)
    assert b.serve() == 0x39


def test_remote_irr_blocks_until_eoi(b: Board) -> None:
    b.route(9, 0x39 | LEVEL)
    b.pin(9, 1)
    b.pin(9, 0)
    b.pin(9, 1)
    assert b.apic.acknowledge(0) == 0x39
    assert b.wire.level == 0
    b.pin(9, 0)
    b.apic.mmio_write(0xB0, 4, 0, 0)
    assert b.wire.level == 0


def test_eoi_register_and_trigger_mode_both_clear_remote_irr(b: Board) -> None:
    for number in range(2):
        b.route(9, 0x39 | LEVEL)
        b.pin(9, 1)
        b.pin(9, 0)
        assert b.reg(0x10 + 18) & REMOTE
        if number == 0:
            b.write(BASE + 0x40, 0x39)
        else:
            b.route(9, 0x39 | MASK)
        assert not b.reg(0x10 + 18) & REMOTE


def test_writing_remote_irr_has_no_effect(b: Board) -> None:
    b.route(9, 0x39 | LEVEL | REMOTE)
    assert not b.reg(0x10 + 18) & REMOTE


def test_two_pins_on_one_vector_both_get_their_eoi(b: Board) -> None:
    for pin in (9, 10):
        b.route(pin, 0x39 | LEVEL)
        b.pin(pin, 1)
    b.pin(9, 0)
    b.serve()
    assert not b.reg(0x10 + 18) & REMOTE
    assert b.reg(0x10 + 20) & REMOTE, "the other is still asserted"


def test_destinations(b: Board) -> None:
    b.route(5, 0x35, destination=1)
    b.pin(5, 1)
    assert b.apics[1].s.irr == 1 << 0x35
    b.apics[0].mmio_write(0xD0, 4, 1 << 24, 0)
    b.apics[1].mmio_write(0xD0, 4, 2 << 24, 0)
    b.route(6, 0x36 | 0x800, destination=3)
    b.pin(6, 1)
    assert all(a.s.irr >> 0x36 & 1 for a in b.apics)
    b.route(7, 0x37, destination=0xFF)
    b.pin(7, 1)
    assert all(a.s.irr >> 0x37 & 1 for a in b.apics)


def test_a_level_nobody_takes_leaves_remote_irr_clear(b: Board) -> None:
    b.route(9, 0x39 | LEVEL, destination=7)
    b.pin(9, 1)
    assert not b.reg(0x10 + 18) & REMOTE
    b.route(9, 0x39 | LEVEL, destination=0)
    assert b.serve() == 0x39


def test_extint_and_nmi_modes() -> None:
    b = Board()
    kinds: list[str] = []
    b.apic.signal = lambda kind, vector, now: kinds.append(kind)
    b.apic.extint_acknowledge = lambda now: 0x20
    b.route(3, 0x400 | LEVEL)
    b.pin(3, 1)
    assert kinds == ["nmi"], "always an edge"
    b.route(0, 0x700)
    b.pin(0, 1)
    assert b.apic.acknowledge(0) == 0x20
    assert b.wire.level == 0


def test_reset_masks_all_and_keeps_lines(b: Board) -> None:
    b.route(9, 0x39 | LEVEL | MASK)
    b.pin(9, 1)
    b.io.reset(0)
    assert b.reg(0x10 + 18) == MASK
    b.route(9, 0x39 | LEVEL)
    assert b.serve() == 0x39
