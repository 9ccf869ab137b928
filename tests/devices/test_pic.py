"""8259A pair by its data sheet: initialisation, priorities, rotation, masks, polling, cascade."""

from __future__ import annotations

import pytest

from emu.devices.pic import Pic
from tests.devices.rig import Rig, Wire

MASTER, SLAVE = 0x20, 0xA0


class Pair(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire()
        self.pic = Pic(self.clock, self.wire)
        self.add(self.pic)

    def init(self, icw4_master: int = 0x01, icw4_slave: int = 0x01) -> None:
        """As every PC does: vectors 0x20 and 0x28, slave on IR2, all unmasked."""
        self.outs(MASTER, [0x11])
        self.outs(MASTER + 1, [0x20, 0x04, icw4_master])
        self.outs(SLAVE, [0x11])
        self.outs(SLAVE + 1, [0x28, 0x02, icw4_slave])
        self.outb(MASTER + 1, 0)
        self.outb(SLAVE + 1, 0)

    def set(self, irq: int, level: int) -> None:
        self.pic.set_irq(irq, level, self.now)

    def pulse(self, irq: int) -> None:
        self.set(irq, 0)
        self.set(irq, 1)

    def ack(self) -> int:
        return self.pic.acknowledge(self.now)

    def isr(self, chip: int = MASTER) -> int:
        self.outb(chip, 0x0B)
        return self.inb(chip)

    def irr(self, chip: int = MASTER) -> int:
        self.outb(chip, 0x0A)
        return self.inb(chip)


@pytest.fixture
def pair() -> Pair:
    pair = Pair()
    pair.init()
    return pair


def test_nothing_is_delivered_before_initialisation() -> None:
    pair = Pair()
    pair.set(0, 1)
    assert pair.wire.level == 0


def test_an_edge_is_delivered_once(pair: Pair) -> None:
    pair.set(4, 1)
    assert pair.wire.level == 1 and pair.irr() == 0x10
    assert pair.ack() == 0x24
    assert (pair.wire.level, pair.irr(), pair.isr()) == (0, 0, 0x10)
    pair.outb(MASTER, 0x20)
    assert pair.isr() == 0
    assert pair.wire.level == 0, "the line is still high, but it needs a new edge"
    pair.pulse(4)
    assert pair.ack() == 0x24


def test_an_edge_that_falls_before_the_acknowledge_is_gone(pair: Pair) -> None:
    pair.set(4, 1)
    pair.set(4, 0)
    assert pair.wire.level == 0
    assert pair.ack() == 0x27, "spurious IRQ 7"
    assert pair.isr() == 0, "which sets no ISR bit"


def test_level_triggered_line_requests_until_it_falls(pair: Pair) -> None:
    pair.outb(0x4D1, 0x02)  # IRQ 9
    pair.set(9, 1)
    assert pair.ack() == 0x29
    pair.outs(SLAVE, [0x20])
    pair.outs(MASTER, [0x20])
    assert pair.wire.level == 1
    assert pair.ack() == 0x29
    pair.set(9, 0)
    pair.outs(SLAVE, [0x20])
    pair.outs(MASTER, [0x20])
    assert pair.wire.level == 0


def test_elcr_cannot_make_the_timer_or_the_rtc_level_triggered(pair: Pair) -> None:
    pair.outb(0x4D0, 0xFF)
    pair.outb(0x4D1, 0xFF)
    assert (pair.inb(0x4D0), pair.inb(0x4D1)) == (0xF8, 0xDE)


def test_fixed_priority_and_nesting(pair: Pair) -> None:
    for irq in (5, 3, 6):
        pair.set(irq, 1)
    assert pair.ack() == 0x23
    assert pair.wire.level == 0, "5 and 6 wait behind 3"
    pair.set(1, 1)
    assert pair.wire.level == 1, "1 interrupts 3"
    assert pair.ack() == 0x21
    assert pair.isr() == 0x0A
    pair.outb(MASTER, 0x20)
    assert pair.isr() == 0x08, "non-specific EOI ends the highest"
    pair.outb(MASTER, 0x20)
    assert [pair.ack(), pair.wire.level] == [0x25, 0]


def test_specific_eoi_ends_the_named_level(pair: Pair) -> None:
    pair.set(3, 1)
    pair.ack()
    pair.set(1, 1)
    pair.ack()
    pair.outb(MASTER, 0x63)
    assert pair.isr() == 0x02


def test_masked_request_waits(pair: Pair) -> None:
    pair.outb(MASTER + 1, 0x10)
    pair.set(4, 1)
    assert pair.wire.level == 0 and pair.irr() == 0x10
    assert pair.inb(MASTER + 1) == 0x10
    pair.outb(MASTER + 1, 0)
    assert pair.ack() == 0x24


def test_cascade_needs_both_eois(pair: Pair) -> None:
    pair.set(12, 1)
    assert pair.ack() == 0x2C
    assert (pair.isr(MASTER), pair.isr(SLAVE)) == (0x04, 0x10)
    pair.set(14, 1)
    pair.outb(SLAVE, 0x20)
    assert pair.wire.level == 0, "IR2 of the master is still in service"
    pair.outb(MASTER, 0x20)
    assert pair.ack() == 0x2E


def test_master_lines_above_the_cascade_come_first(pair: Pair) -> None:
    pair.set(8, 1)
    pair.set(1, 1)
    pair.set(3, 1)
    got = []
    while pair.wire.level:
        vector = pair.ack()
        got.append(vector)
        if vector >= 0x28:
            pair.outb(SLAVE, 0x20)
        pair.outb(MASTER, 0x20)
    assert got == [0x21, 0x28, 0x23]


def test_spurious_irq15_leaves_only_the_cascade_in_service(pair: Pair) -> None:
    pair.outb(MASTER + 1, 0x04)
    pair.set(10, 1)
    pair.outb(MASTER + 1, 0)
    # The slave loses its request after the master has latched the cascade.
    pair.pic.s.chips[1].latch = 0
    assert pair.ack() == 0x2F
    assert (pair.isr(MASTER), pair.isr(SLAVE)) == (0x04, 0)


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself() -> None:
    for icw4, nested in ((0x01, 0), (0x11, 1)):
        pair = Pair()
        pair.init(icw4)
        pair.set(12, 1)
        pair.ack()
        pair.set(8, 1)
        assert pair.wire.level == nested
        if nested:
            assert pair.ack() == 0x28


def test_auto_eoi_leaves_nothing_in_service() -> None:
    pair = Pair()
    pair.init(0x03)
    pair.set(4, 1)
    pair.set(5, 1)
    assert pair.ack() == 0x24
    assert pair.isr() == 0
    assert pair.ack() == 0x25


def test_int_falls_and_rises_between_two_acknowledges() -> None:
    pair = Pair()
    pair.init(0x03)
    pair.set(4, 1)
    pair.set(5, 1)
    pair.wire.changes.clear()
    pair.ack()
    assert pair.wire.changes == [(0, 0), (1, 0)]


def test_rotate_on_non_specific_eoi(pair: Pair) -> None:
    """Data sheet, "Automatic rotation": IR4 serviced, then IR4 is the lowest and IR5 the highest."""
    pair.set(4, 1)
    pair.ack()
    pair.outb(MASTER, 0xA0)
    pair.pulse(4)
    pair.set(6, 1)
    assert pair.ack() == 0x26


def test_rotate_on_specific_eoi_and_set_priority(pair: Pair) -> None:
    pair.set(2 + 1, 1)
    pair.ack()
    pair.outb(MASTER, 0xE3)  # ends 3 and makes it the lowest
    pair.pulse(3)
    pair.set(7, 1)
    assert pair.ack() == 0x27
    pair.outb(MASTER, 0x67)
    pair.outb(MASTER, 0xC6)  # set priority: 6 the lowest, so 7 the highest
    pair.pulse(7)
    pair.set(0, 1)
    assert pair.ack() == 0x27


def test_rotate_in_auto_eoi_mode() -> None:
    pair = Pair()
    pair.init(0x03)
    pair.outb(MASTER, 0x80)
    pair.set(1, 1)
    assert pair.ack() == 0x21
    pair.pulse(1)
    pair.set(5, 1)
    assert pair.ack() == 0x25
    pair.outb(MASTER, 0x00)  # rotation off: 5 stays the lowest
    assert pair.ack() == 0x21
    pair.pulse(5)
    pair.pulse(6)
    assert pair.ack() == 0x26


def test_special_mask_mode_enables_lower_levels(pair: Pair) -> None:
    pair.set(3, 1)
    pair.ack()
    pair.set(6, 1)
    assert pair.wire.level == 0
    pair.outb(MASTER + 1, 0x08)
    pair.outb(MASTER, 0x68)
    assert pair.ack() == 0x26
    pair.outb(MASTER, 0x20)
    assert pair.isr() == 0x08, "a masked level in service is not ended by a non-specific EOI"
    pair.outb(MASTER, 0x48)
    pair.outb(MASTER, 0x20)
    assert pair.isr() == 0


def test_poll_command_acknowledges_with_the_next_read(pair: Pair) -> None:
    pair.outb(MASTER, 0x0C)
    assert pair.inb(MASTER) == 0
    pair.set(5, 1)
    pair.outb(MASTER, 0x0C)
    assert pair.inb(MASTER) == 0x85
    assert pair.wire.level == 0 and pair.isr() == 0x20
    assert pair.inb(MASTER) == 0x20, "only one read"


def test_poll_of_the_slave_alone(pair: Pair) -> None:
    pair.set(11, 1)
    pair.outb(SLAVE, 0x0C)
    assert pair.inb(SLAVE) == 0x83
    assert pair.wire.level == 0, "its request to the master fell"


def test_icw1_clears_mask_service_and_pending_edges(pair: Pair) -> None:
    pair.set(4, 1)
    pair.ack()
    pair.set(5, 1)
    pair.outb(MASTER + 1, 0x40)
    pair.outb(MASTER, 0x0B)
    pair.outs(MASTER, [0x11])
    pair.outs(MASTER + 1, [0x50, 0x04, 0x01])
    assert pair.inb(MASTER + 1) == 0
    assert pair.inb(MASTER) == 0, "status read is IRR again, and no old edge is in it"
    assert pair.isr() == 0
    pair.pulse(5)
    assert pair.ack() == 0x55


def test_icw4_and_icw3_are_optional(pair: Pair) -> None:
    pair.outs(MASTER, [0x12])  # single, no ICW4
    pair.outb(MASTER + 1, 0x47)
    pair.outb(MASTER + 1, 0xF0)
    assert pair.inb(MASTER + 1) == 0xF0, "this was OCW1"
    pair.pulse(1)
    assert pair.ack() == 0x41, "the low three bits of ICW2 are ignored"


def test_reset_masks_everything(pair: Pair) -> None:
    pair.set(4, 1)
    pair.pic.reset(0)
    assert pair.wire.level == 0
    assert pair.inb(MASTER + 1) == 0xFF
