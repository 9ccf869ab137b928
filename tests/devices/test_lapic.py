"""Local APIC by the SDM: priorities, EOI, IPIs, timer, modes and what each mode refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.devices.lapic import ApicBus, LocalApic
from tests.devices.rig import Rig, Wire

TPR, PPR, EOI, LDR, DFR, SVR = 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR2 = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
TIMER, LINT0, LINT1, ERROR, INITIAL, CURRENT, DIVIDE = 0x320, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3E0
APIC_BASE, DEADLINE = 0x1B, 0x6E0


class Cpu:
    """One APIC with its pin and what was signalled."""

    def __init__(self, rig: Apics, index: int) -> None:
        self.rig = rig
        self.wire = Wire()
        self.signals: list[tuple[str, int]] = []
        self.offset = 0
        self.pic_vectors: list[int] = []
        self.apic = LocalApic(
            rig.clock,
            index,
            rig.bus_,
            self.wire,
            lambda kind, vector, now: self.signals.append((kind, vector)),
            lambda: self.offset,
            lambda now: self.pic_vectors.pop(0),
        )

    def rd(self, register: int) -> int:
        return self.apic.mmio_read(register, 4, self.rig.now)

    def wr(self, register: int, value: int) -> None:
        self.apic.mmio_write(register, 4, value, self.rig.now)

    def rdmsr(self, msr: int) -> int | None:
        return self.apic.read_msr(msr, self.rig.now)

    def wrmsr(self, msr: int, value: int) -> bool:
        return self.apic.write_msr(msr, value, self.rig.now)

    def enable(self) -> Cpu:
        self.wr(SVR, 0x1FF)
        return self

    def x2(self) -> Cpu:
        assert self.wrmsr(APIC_BASE, self.apic.s.apic_base | 0x400)
        assert self.wrmsr(0x80F, 0x1FF)
        return self

    def raise_(self, vector: int, level: bool = False) -> bool:
        return self.apic.accept(0, vector, level, self.rig.now)

    def ack(self) -> int:
        return self.apic.acknowledge(self.rig.now)

    def ipi(self, icr: int, destination: int = 0) -> None:
        self.wr(ICR2, destination << 24)
        self.wr(ICR, icr)

    def bits(self, register: int) -> set[int]:
        return {32 * i + b for i in range(8) for b in range(32) if self.rd(register + 16 * i) >> b & 1}


class Apics(Rig):
    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.bus_ = ApicBus()
        self.eois: list[int] = []
        self.bus_.eoi_listeners.append(lambda vector, now: self.eois.append(vector))
        self.cpus = [Cpu(self, i) for i in range(count)]


@pytest.fixture
def rig() -> Apics:
    return Apics()


@pytest.fixture
def cpu(rig: Apics) -> Cpu:
    return rig.cpus[0].enable()


# --- reset state and registers ---


def test_power_on_state(rig: Apics) -> None:
    cpu = rig.cpus[0]
    assert cpu.rdmsr(APIC_BASE) == 0xFEE00900
    assert cpu.rd(0x30) == 0x50014
    assert (cpu.rd(SVR), cpu.rd(DFR), cpu.rd(LDR), cpu.rd(TPR)) == (0xFF, 0xFFFFFFFF, 0, 0)
    assert [cpu.rd(r) for r in range(0x320, 0x380, 0x10)] == [0x10000] * 6
    assert Apics(2).cpus[1].rdmsr(APIC_BASE) == 0xFEE00800, "only the first is the boot CPU"


def test_id_is_in_the_high_byte_in_xapic_and_whole_in_x2apic() -> None:
    cpu = Apics(4).cpus[3]
    assert cpu.rd(0x20) == 3 << 24
    assert cpu.x2().rdmsr(0x802) == 3


def test_software_disabled_masks_lvts_and_refuses_interrupts(rig: Apics) -> None:
    cpu = rig.cpus[0]
    cpu.wr(LINT0, 0x700)
    assert cpu.rd(LINT0) == 0x10700
    assert not cpu.raise_(0x40)
    cpu.enable()
    cpu.wr(LINT0, 0x700)
    assert cpu.rd(LINT0) == 0x700
    assert cpu.raise_(0x40) and cpu.wire.level == 1
    cpu.wr(SVR, 0xFF)
    assert cpu.wire.level == 0 and cpu.rd(LINT0) == 0x10700
    assert cpu.bits(IRR) == {0x40}, "pending ones are held"


def test_byte_reads_and_reserved_offsets(cpu: Cpu) -> None:
    assert cpu.apic.mmio_read(0x31, 1, 0) == 0x00
    assert cpu.apic.mmio_read(0x32, 2, 0) == 0x0005
    assert cpu.apic.mmio_read(0x34, 4, 0) == 0
    cpu.apic.mmio_write(TPR, 1, 0x55, 0)
    assert cpu.rd(TPR) == 0, "narrow writes are undefined and do nothing"


def test_illegal_register_sets_esr_on_its_next_write(cpu: Cpu) -> None:
    cpu.rd(0x40)
    assert cpu.rd(ESR) == 0
    cpu.wr(ESR, 0)
    assert cpu.rd(ESR) == 0x80
    cpu.wr(ESR, 0)
    assert cpu.rd(ESR) == 0


def test_error_interrupt(cpu: Cpu) -> None:
    cpu.wr(ERROR, 0xFE)
    cpu.wr(0x40, 1)
    assert cpu.ack() == 0xFE


# --- priorities ---


def test_highest_vector_first_and_classes_block(cpu: Cpu) -> None:
    for vector in (0x41, 0x52, 0x5F):
        cpu.raise_(vector)
    assert cpu.ack() == 0x5F
    assert cpu.rd(PPR) == 0x50
    assert cpu.wire.level == 0, "0x52 is of the same class"
    cpu.raise_(0x60)
    assert cpu.wire.level == 1
    assert cpu.ack() == 0x60
    cpu.wr(EOI, 0)
    assert cpu.bits(ISR) == {0x5F}
    cpu.wr(EOI, 0)
    assert cpu.ack() == 0x52
    cpu.wr(EOI, 0)
    assert cpu.ack() == 0x41


def test_tpr_and_cr8(cpu: Cpu) -> None:
    cpu.raise_(0x45)
    cpu.wr(TPR, 0x4F)
    assert cpu.wire.level == 0 and cpu.rd(PPR) == 0x4F
    assert cpu.apic.get_cr8() == 4
    cpu.apic.set_cr8(3, 0)
    assert cpu.wire.level == 1 and cpu.rd(TPR) == 0x30
    cpu.wr(TPR, 0xFF)
    assert cpu.ack() == -1, "nothing can be taken"


def test_the_pin_is_high_exactly_while_something_can_be_taken(cpu: Cpu) -> None:
    cpu.raise_(0x31)
    cpu.raise_(0x81)
    cpu.ack()
    assert cpu.wire.level == 0
    cpu.wr(EOI, 0)
    assert cpu.wire.level == 1
    assert cpu.ack() == 0x31
    cpu.wr(EOI, 0)
    cpu.wr(EOI, 0)
    assert cpu.wire.level == 0 and cpu.bits(ISR) == set(), "an EOI too many does nothing"


def test_the_same_vector_can_wait_while_it_is_in_service(cpu: Cpu) -> None:
    cpu.raise_(0x40)
    cpu.ack()
    cpu.raise_(0x40)
    cpu.raise_(0x40)
    assert (cpu.bits(IRR), cpu.bits(ISR)) == ({0x40}, {0x40})
    cpu.wr(EOI, 0)
    assert cpu.ack() == 0x40


def test_eoi_of_a_level_interrupt_is_broadcast(rig: Apics, cpu: Cpu) -> None:
    cpu.raise_(0x40, level=True)
    assert cpu.bits(TMR) == {0x40}
    cpu.ack()
    cpu.wr(EOI, 0)
    cpu.raise_(0x40)
    assert cpu.bits(TMR) == set()
    cpu.ack()
    cpu.wr(EOI, 0)
    assert rig.eois == [0x40]


def test_vectors_below_16_are_illegal(cpu: Cpu) -> None:
    assert not cpu.raise_(15)
    cpu.wr(ESR, 0)
    assert cpu.rd(ESR) == 0x40
    cpu.ipi(0x4000F)
    cpu.wr(ESR, 0)
    assert cpu.rd(ESR) == 0x20
    assert cpu.bits(IRR) == set()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("raise"), st.integers(16, 255)),
            st.tuples(st.just("tpr"), st.integers(0, 255)),
            st.tuples(st.just("ack"), st.just(0)),
            st.tuples(st.just("eoi"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_against_a_model_of_sets(steps: list[tuple[str, int]]) -> None:
    """IRR and ISR as plain sets, and the rule of section 12.8.3 written out."""
    cpu = Apics().cpus[0].enable()
    irr: set[int] = set()
    isr: set[int] = set()
    tpr = 0
    for what, value in steps:
        if what == "raise":
            irr.add(value)
            cpu.raise_(value)
        elif what == "tpr":
            tpr = value
            cpu.wr(TPR, value)
        elif what == "eoi":
            isr -= {max(isr)} if isr else set()
            cpu.wr(EOI, 0)
        highest = max(irr, default=0)
        can = highest >> 4 > max(tpr >> 4, max(isr, default=0) >> 4)
        if what == "ack":
            assert cpu.ack() == (highest if can else -1)
            if can:
                irr.remove(highest)
                isr.add(highest)
                highest = max(irr, default=0)
                can = highest >> 4 > max(tpr >> 4, max(isr, default=0) >> 4)
        assert cpu.wire.level == can
        assert (cpu.bits(IRR), cpu.bits(ISR)) == (irr, isr)


# --- LINT pins ---


def test_extint_through_lint0(cpu: Cpu) -> None:
    cpu.pic_vectors = [0x21]
    cpu.apic.lint_pin(0, 1, 0)
    assert cpu.wire.level == 0, "masked"
    cpu.wr(LINT0, 0x700)
    assert cpu.wire.level == 1
    cpu.apic.set_cr8(15, 0)
    assert cpu.wire.level == 1, "an external interrupt has no priority"
    assert cpu.ack() == 0x21
    assert cpu.bits(ISR) == set()
    cpu.apic.lint_pin(0, 0, 0)
    assert cpu.wire.level == 0


def test_with_the_apic_off_the_pins_are_intr_and_nmi(cpu: Cpu) -> None:
    cpu.wrmsr(APIC_BASE, 0xFEE00100)
    assert cpu.apic.mmio_base == -1
    cpu.pic_vectors = [0x33]
    cpu.apic.lint_pin(0, 1, 0)
    assert cpu.wire.level == 1 and cpu.ack() == 0x33
    cpu.apic.lint_pin(1, 1, 0)
    assert cpu.signals == [("nmi", 0)]


def test_lint0_as_a_fixed_edge_or_level(rig: Apics, cpu: Cpu) -> None:
    cpu.wr(LINT0, 0x40)
    cpu.apic.lint_pin(0, 1, 0)
    assert cpu.ack() == 0x40
    cpu.wr(EOI, 0)
    assert cpu.wire.level == 0
    cpu.wr(LINT0, 0x8041)
    assert cpu.rd(LINT0) == 0xC041, "remote IRR"
    assert cpu.ack() == 0x41
    cpu.wr(EOI, 0)
    assert cpu.ack() == 0x41, "still asserted"
    cpu.apic.lint_pin(0, 0, 0)
    cpu.wr(EOI, 0)
    assert cpu.wire.level == 0 and cpu.rd(LINT0) == 0x8041


def test_lint1_nmi_is_an_edge(cpu: Cpu) -> None:
    cpu.wr(LINT1, 0x400)
    cpu.apic.lint_pin(1, 1, 0)
    cpu.apic.lint_pin(1, 1, 0)
    assert cpu.signals == [("nmi", 0)]


def test_virtual_wire_mode(rig: Apics) -> None:
    cpu = rig.cpus[0]
    cpu.apic.virtual_wire(0)
    assert (cpu.rd(SVR), cpu.rd(LINT0), cpu.rd(LINT1)) == (0x1FF, 0x700, 0x400)


# --- timer ---


@pytest.mark.parametrize(
    "code, divisor", [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]
)
def test_one_shot_and_divider(rig: Apics, cpu: Cpu, code: int, divisor: int) -> None:
    cpu.wr(TIMER, 0x40)
    cpu.wr(DIVIDE, code)
    rig.to(7)
    cpu.wr(INITIAL, 100)
    rig.after(10 * divisor)
    assert cpu.rd(CURRENT) == 90
    assert rig.idle() == 7 + 100 * divisor
    assert cpu.ack() == 0x40
    assert cpu.rd(CURRENT) == 0 and rig.idle() is None


def test_periodic(rig: Apics, cpu: Cpu) -> None:
    cpu.wr(DIVIDE, 11)
    cpu.wr(TIMER, 0x20040)
    cpu.wr(INITIAL, 100)
    assert [rig.idle(), rig.idle(), rig.idle()] == [100, 200, 300]
    rig.to(330)
    assert cpu.rd(CURRENT) == 70
    cpu.wr(INITIAL, 0)
    assert rig.idle() is None and cpu.rd(CURRENT) == 0


def test_a_masked_timer_counts_without_events(rig: Apics, cpu: Cpu) -> None:
    cpu.wr(DIVIDE, 11)
    cpu.wr(TIMER, 0x30040)
    cpu.wr(INITIAL, 100)
    assert rig.clock.state() == []
    rig.to(1234)
    assert cpu.rd(CURRENT) == 66
    cpu.wr(TIMER, 0x20040)
    assert rig.idle() == 1300


def test_unmasking_after_a_one_shot_has_expired_is_too_late(rig: Apics, cpu: Cpu) -> None:
    cpu.wr(DIVIDE, 11)
    cpu.wr(TIMER, 0x10040)
    cpu.wr(INITIAL, 100)
    rig.to(100)
    cpu.wr(TIMER, 0x40)
    assert rig.clock.state() == []


def test_changing_the_divider_keeps_the_count(rig: Apics, cpu: Cpu) -> None:
    cpu.wr(DIVIDE, 11)
    cpu.wr(TIMER, 0x40)
    cpu.wr(INITIAL, 100)
    rig.to(40)
    cpu.wr(DIVIDE, 0)
    assert cpu.rd(CURRENT) == 60
    assert rig.idle() == 40 + 120


def test_tsc_deadline(rig: Apics, cpu: Cpu) -> None:
    assert cpu.wrmsr(DEADLINE, 500)
    assert cpu.rdmsr(DEADLINE) == 0, "ignored outside of deadline mode"
    cpu.wr(TIMER, 0x40040)
    cpu.offset = 1000
    cpu.wrmsr(DEADLINE, 1500)
    assert cpu.rdmsr(DEADLINE) == 1500
    assert rig.idle() == 500
    assert cpu.ack() == 0x40 and cpu.rdmsr(DEADLINE) == 0
    cpu.wr(INITIAL, 5)
    assert cpu.rd(CURRENT) == 0, "the counter is off in this mode"


@pytest.mark.parametrize("ahead", [-(10**9), -1, 0])
def test_a_deadline_that_has_come_fires_within_the_write(rig: Apics, cpu: Cpu, ahead: int) -> None:
    rig.to(2 * 10**9)
    cpu.wr(TIMER, 0x40040)
    cpu.wrmsr(DEADLINE, rig.now + ahead)
    assert cpu.wire.changes == [(1, rig.now)]
    assert cpu.rdmsr(DEADLINE) == 0 and rig.clock.state() == []


@pytest.mark.parametrize("ahead", range(1, 21))
def test_a_deadline_just_ahead_fires_exactly_there(rig: Apics, cpu: Cpu, ahead: int) -> None:
    rig.to(1000)
    cpu.offset = (1 << 64) - 400  # a TSC behind the clock, as an unsigned offset
    cpu.wr(TIMER, 0x40040)
    cpu.wrmsr(DEADLINE, 600 + ahead)
    rig.to(1000 + ahead - 1)
    assert cpu.wire.level == 0
    rig.to(1000 + ahead)
    assert cpu.wire.changes == [(1, 1000 + ahead)]


def test_a_masked_deadline_still_disarms_itself(rig: Apics, cpu: Cpu) -> None:
    cpu.wr(TIMER, 0x50040)
    cpu.wrmsr(DEADLINE, 100)
    rig.to(100)
    assert cpu.rdmsr(DEADLINE) == 0 and cpu.bits(IRR) == set()


def test_deadline_zero_and_mode_change_disarm(rig: Apics, cpu: Cpu) -> None:
    cpu.wr(TIMER, 0x40040)
    cpu.wrmsr(DEADLINE, 100)
    cpu.wrmsr(DEADLINE, 0)
    assert rig.clock.state() == []
    cpu.wrmsr(DEADLINE, 100)
    cpu.wr(TIMER, 0x40)
    assert rig.clock.state() == []
    cpu.wr(TIMER, 0x40040)
    assert cpu.rdmsr(DEADLINE) == 0


def test_a_deadline_beyond_all_time_has_no_event(rig: Apics, cpu: Cpu) -> None:
    cpu.wr(TIMER, 0x40040)
    cpu.wrmsr(DEADLINE, (1 << 64) - 1)
    assert rig.clock.state() == []


def test_writing_the_tsc_moves_the_deadline(rig: Apics, cpu: Cpu) -> None:
    cpu.wr(TIMER, 0x40040)
    cpu.wrmsr(DEADLINE, 1000)
    cpu.offset = 300
    cpu.apic.tsc_changed(rig.now)
    assert rig.idle() == 700


# --- modes ---


@pytest.mark.parametrize(
    "path, ok",
    [
        ([0x800, 0xC00], [True, True]),
        ([0x800, 0x000, 0x800], [True, True, True]),
        ([0x000, 0xC00], [True, False]),
        ([0x400], [False]),
        ([0xC00, 0x800], [True, False]),
        ([0xC00, 0x000, 0x800], [True, True, True]),
        ([0xC00, 0x400], [True, False]),
    ],
)
def test_mode_transitions(rig: Apics, path: list[int], ok: list[bool]) -> None:
    assert [rig.cpus[0].wrmsr(APIC_BASE, 0xFEE00100 | bits) for bits in path] == ok


@pytest.mark.parametrize("value", [0xFEE00901, 0xFEE00B00, 1 << 52 | 0xFEE00900])
def test_reserved_bits_of_apic_base(rig: Apics, value: int) -> None:
    assert not rig.cpus[0].wrmsr(APIC_BASE, value)


def test_switching_off_and_on_again_is_a_reset(cpu: Cpu) -> None:
    cpu.wr(TPR, 0x20)
    cpu.raise_(0x80)
    cpu.wrmsr(APIC_BASE, 0xFEE00100)
    cpu.wrmsr(APIC_BASE, 0xFEE00900)
    assert cpu.rd(SVR) == 0xFF and cpu.rd(TPR) == 0 and cpu.bits(IRR) == set()
    assert cpu.wire.level == 0


def test_relocation(cpu: Cpu) -> None:
    cpu.wrmsr(APIC_BASE, 0xFED40900)
    assert cpu.apic.mmio_base == 0xFED40000


def test_x2apic_msrs_do_not_exist_in_xapic_mode(cpu: Cpu) -> None:
    assert cpu.rdmsr(0x802) is None
    assert not cpu.wrmsr(0x808, 0)


def test_x2apic_hides_the_page(cpu: Cpu) -> None:
    cpu.x2()
    assert cpu.apic.mmio_base == -1


@pytest.mark.parametrize(
    "msr", [0x800, 0x801, 0x804, 0x809, 0x80B, 0x80C, 0x80E, 0x82F, 0x831, 0x83F, 0x840, 0x8FF]
)
def test_x2apic_registers_that_cannot_be_read(cpu: Cpu, msr: int) -> None:
    assert cpu.x2().rdmsr(msr) is None


@pytest.mark.parametrize("msr", [0x802, 0x803, 0x80A, 0x80D, 0x80E, 0x810, 0x827, 0x82F, 0x831, 0x839, 0x840])
def test_x2apic_registers_that_cannot_be_written(cpu: Cpu, msr: int) -> None:
    assert not cpu.x2().wrmsr(msr, 0)


@pytest.mark.parametrize(
    "msr, value",
    [
        (0x808, 0x100),
        (0x80B, 1),
        (0x80F, 0x200),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 20),
        (0x832, 1 << 19),
        (0x835, 1 << 17),
        (0x838, 1 << 32),
        (0x83E, 4),
        (0x83F, 0x100),
    ],
)
def test_x2apic_reserved_bits_fault_and_change_nothing(cpu: Cpu, msr: int, value: int) -> None:
    cpu.x2()
    before = cpu.apic.state()
    assert not cpu.wrmsr(msr, value)
    assert cpu.apic.state() == before


def test_x2apic_logical_id_is_derived() -> None:
    rig = Apics(20)
    assert rig.cpus[0].x2().rdmsr(0x80D) == 0x0000_0001
    assert rig.cpus[19].x2().rdmsr(0x80D) == 0x0001_0008


def test_init_keeps_the_mode(rig: Apics) -> None:
    cpu = rig.cpus[0].x2()
    cpu.wrmsr(0x808, 0x30)
    cpu.apic.accept(5, 0, False, 0)
    assert cpu.signals == [("init", 0)]
    assert cpu.rdmsr(APIC_BASE) == 0xFEE00D00
    assert cpu.rdmsr(0x808) == 0 and cpu.rdmsr(0x80D) == 1


# --- interprocessor interrupts ---


def takers(rig: Apics, vector: int) -> list[int]:
    return [c.apic.index for c in rig.cpus if vector in c.bits(IRR)]


def many(count: int = 4) -> Apics:
    rig = Apics(count)
    for cpu in rig.cpus:
        cpu.enable()
        cpu.wr(LDR, 1 << (24 + cpu.apic.index % 8))
    return rig


@pytest.mark.parametrize(
    "icr, destination, expected",
    [
        (0x00050, 2, [2]),
        (0x00050, 0xFF, [0, 1, 2, 3]),
        (0x00050, 9, []),
        (0x00850, 0b1010, [1, 3]),
        (0x00850, 0xFF, [0, 1, 2, 3]),
        (0x40050, 0, [1]),
        (0x80050, 0, [0, 1, 2, 3]),
        (0xC0050, 0, [0, 2, 3]),
    ],
)
def test_destinations(icr: int, destination: int, expected: list[int]) -> None:
    rig = many()
    rig.cpus[1].ipi(icr, destination)
    assert takers(rig, 0x50) == expected


def test_cluster_mode() -> None:
    rig = many()
    for cpu in rig.cpus:
        cpu.wr(DFR, 0x0FFFFFFF)
        cpu.wr(LDR, (cpu.apic.index >> 1) << 28 | 1 << (24 + (cpu.apic.index & 1)))
    rig.cpus[0].ipi(0x850, 0x12)
    assert takers(rig, 0x50) == [3]
    rig.cpus[0].ipi(0x851, 0xF1)
    assert takers(rig, 0x51) == [0, 2]


def test_a_logical_broadcast_reaches_an_apic_without_a_logical_id() -> None:
    rig = many(2)
    rig.cpus[1].wr(LDR, 0)
    rig.cpus[0].ipi(0x850, 0xFE)
    assert takers(rig, 0x50) == []
    rig.cpus[0].ipi(0x850, 0xFF)
    assert takers(rig, 0x50) == [0, 1]


def test_x2apic_destinations() -> None:
    rig = Apics(20)
    for cpu in rig.cpus:
        cpu.x2()

    def vectors(v: int) -> list[int]:
        return [c.apic.index for c in rig.cpus if c.apic.s.irr >> v & 1]

    rig.cpus[0].wrmsr(0x830, 17 << 32 | 0x50)
    assert vectors(0x50) == [17]
    rig.cpus[0].wrmsr(0x830, 0x0001_000A << 32 | 0x851)
    assert vectors(0x51) == [17, 19]
    rig.cpus[0].wrmsr(0x830, 0xFFFF_FFFF << 32 | 0x52)
    assert vectors(0x52) == list(range(20))
    assert rig.cpus[5].wrmsr(0x83F, 0x53)
    assert vectors(0x53) == [5]
    assert rig.cpus[0].rdmsr(0x830) == 0xFFFF_FFFF << 32 | 0x52


def test_lowest_priority_goes_to_the_idlest() -> None:
    rig = many()
    rig.cpus[0].wr(TPR, 0x40)
    rig.cpus[1].wr(TPR, 0x20)
    rig.cpus[2].wr(TPR, 0x20)
    rig.cpus[3].wr(SVR, 0xFF)
    rig.cpus[0].ipi(0x950, 0xFF)
    assert takers(rig, 0x50) == [1]


def test_nmi_init_and_sipi_reach_disabled_apics_too() -> None:
    rig = Apics(2)
    boot, other = rig.cpus
    boot.ipi(0x4400, 1)
    boot.ipi(0xC500, 1)
    boot.ipi(0x8500, 1)  # de-assert: nothing
    boot.ipi(0x4608, 1)
    assert other.signals == [("nmi", 0), ("init", 0), ("sipi", 8)]
    assert boot.signals == []


def test_init_resets_the_target_apic() -> None:
    rig = many(2)
    rig.cpus[1].raise_(0x80)
    rig.cpus[0].ipi(0xC500, 1)
    assert rig.cpus[1].wire.level == 0 and rig.cpus[1].rd(SVR) == 0xFF


def test_an_apic_that_is_off_hears_nothing() -> None:
    rig = many(2)
    rig.cpus[1].wrmsr(APIC_BASE, 0xFEE00000)
    rig.cpus[0].ipi(0xC4500, 0)
    assert rig.cpus[1].signals == []


# --- messages ---


@pytest.mark.parametrize(
    "address, data, expected, level",
    [
        (0xFEE01000, 0x0050, [1], False),
        (0xFEE0A004, 0x0050, [1, 3], False),
        (0xFEEFF000, 0x0050, [0, 1, 2, 3], False),
        (0xFEE02000, 0xC050, [2], True),
        (0xFEE02000, 0x8050, [], False),
    ],
)
def test_message_signalled_interrupts(address: int, data: int, expected: list[int], level: bool) -> None:
    rig = many()
    rig.bus.add_all(rig.bus_.regions())
    rig.write(address, data)
    assert takers(rig, 0x50) == expected
    assert all((0x50 in rig.cpus[i].bits(TMR)) == level for i in expected)


def test_the_message_window_reads_as_ones_and_takes_only_words() -> None:
    rig = many()
    rig.bus.add_all(rig.bus_.regions())
    assert rig.read(0xFEE01000) == 0xFFFFFFFF
    rig.write(0xFEE01000, 0x50, 2)
    assert takers(rig, 0x50) == []
