"""The whole board: wiring between devices, routing, reset, and complete state."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.bus import Bus
from emu.clock import Clock
from emu.devices.platform import Platform
from emu.dma import Ram
from emu.errors import ConfigError

APIC, IOAPIC, HPET, ECAM = 0xFEE00000, 0xFEC00000, 0xFED00000, 0xB0000000


class Pc:
    """A platform with everything that leaves it in one log."""

    def __init__(
        self, ncpus: int = 1, memory: int = 512 << 20, *, ram: Ram | None = None, extras: Sequence[str] = ()
    ) -> None:
        self.log: list[tuple[object, ...]] = []
        self.clock = Clock()
        self.bus = Bus()
        self.now = 0
        self.pins = [0] * ncpus
        self.p = Platform(
            self.clock,
            self.bus,
            ncpus,
            intr=self._intr,
            signal=lambda *a: self.log.append(("signal", *a)),
            power=lambda *a: self.log.append(("power", *a)),
            serial=lambda *a: self.log.append(("serial", *a)),
            memory=memory,
            ram=ram,
            extras=extras,
        )

    def _intr(self, cpu: int, level: int, now: int) -> None:
        self.pins[cpu] = level
        self.log.append(("intr", cpu, level, now))

    def to(self, now: int) -> None:
        self.clock.run(now)
        self.now = now

    def inb(self, port: int) -> int:
        return self.bus.port_read(port, 1, self.now)

    def outb(self, port: int, *values: int) -> None:
        for value in values:
            self.bus.port_write(port, 1, value, self.now)

    def rd(self, address: int, size: int = 4, cpu: int = 0) -> int:
        return self.p.mmio_read(cpu, address, size, self.now)

    def wr(self, address: int, value: int, size: int = 4, cpu: int = 0) -> None:
        self.p.mmio_write(cpu, address, size, value, self.now)

    def ack(self, cpu: int = 0) -> int:
        return self.p.acknowledge(cpu, self.now)

    def idle(self) -> int:
        self.to(self.clock.deadline())
        return self.now

    def init_pic(self) -> None:
        self.outb(0x20, 0x11)
        self.outb(0x21, 0x20, 4, 1, 0)
        self.outb(0xA0, 0x11)
        self.outb(0xA1, 0x28, 2, 1, 0)

    def redirect(self, pin: int, low: int) -> None:
        self.wr(IOAPIC, 0x10 + 2 * pin)
        self.wr(IOAPIC + 0x10, low)

    def saved(self) -> str:
        return json.dumps([self.p.state(), self.clock.state()], default=bytes.hex, sort_keys=True)

    def copy(self) -> Pc:
        """Another machine with this one's state."""
        other = Pc(len(self.pins), ram=self.p.dma.ram, extras=tuple(self.p.extras))
        other.p.load(self.p.state())
        other.clock.load(self.clock.state())
        other.now = self.now
        other.pins = self.pins.copy()
        return other


@pytest.fixture
def pc() -> Pc:
    return Pc()


def test_the_timer_interrupts_through_the_8259_as_firmware_leaves_it(pc: Pc) -> None:
    pc.init_pic()
    pc.outb(0x43, 0x34)
    pc.outb(0x40, 100, 0)
    while not pc.pins[0]:
        pc.idle()
    assert pc.ack() == 0x20
    assert pc.pins[0] == 0


def test_the_timer_is_on_pin_2_of_the_io_apic(pc: Pc) -> None:
    pc.outb(0x21, 0xFF)
    pc.redirect(0, 0x30)
    pc.redirect(2, 0x32)
    pc.outb(0x43, 0x34)
    pc.outb(0x40, 100, 0)
    while not pc.pins[0]:
        pc.idle()
    assert pc.ack() == 0x32


@pytest.mark.parametrize("port, base, irq", [(0, 0x3F8, 4), (1, 0x2F8, 3)])
def test_serial_ports(pc: Pc, port: int, base: int, irq: int) -> None:
    pc.redirect(irq, 0x40 + irq)
    pc.outb(base + 3, 3)
    pc.outb(base + 4, 0x0B)
    pc.outb(base + 1, 1)
    pc.p.receive(port, b"x", pc.now)
    assert pc.ack() == 0x40 + irq
    assert pc.inb(base) == ord("x")
    pc.outb(base, 0x41)
    assert pc.log[-1] == ("serial", port, 0x41, 0)


def test_rtc_is_on_irq_8(pc: Pc) -> None:
    pc.init_pic()
    pc.outb(0x70, 0x0B)
    pc.outb(0x71, 0x42)
    pc.idle()
    assert pc.ack() == 0x28


def test_sci_is_on_gsi_9(pc: Pc) -> None:
    pc.redirect(9, 0x8049)
    pc.bus.port_write(0x602, 2, 0x100, 0)
    pc.p.acpipm.press_power_button(0)
    assert pc.ack() == 0x49


def test_legacy_replacement_takes_irq_0_and_8_from_their_owners(pc: Pc) -> None:
    pc.redirect(2, 0x32)
    pc.wr(HPET + 0x100, 4)
    pc.wr(HPET + 0x108, 1000, 8)
    pc.wr(HPET + 0x10, 3)
    pc.outb(0x43, 0x34)
    pc.outb(0x40, 100, 0)  # the 8254 ticks, but nobody hears it
    while not pc.pins[0]:
        pc.idle()
    assert pc.now == 10_000
    assert pc.ack() == 0x32
    pc.wr(APIC + 0xB0, 0)
    pc.wr(HPET + 0x10, 0)
    while not pc.pins[0]:
        pc.idle()
    assert pc.ack() == 0x32


def test_the_8254_gets_its_line_back_as_it_is_then(pc: Pc) -> None:
    pc.wr(HPET + 0x10, 2)
    pc.outb(0x43, 0x30)
    pc.outb(0x40, 5, 0)
    pc.idle()
    assert not pc.p.ioapic.s.lines >> 2 & 1
    pc.wr(HPET + 0x10, 0)
    assert pc.p.ioapic.s.lines >> 2 & 1, "OUT0 rose while the HPET had the line"
    pc.wr(HPET + 0x10, 2)
    assert not pc.p.ioapic.s.lines >> 2 & 1


def test_a_shared_line_is_asserted_while_anybody_asserts_it(pc: Pc) -> None:
    first, second = pc.p.wiring.source(17), pc.p.wiring.source(17)
    pc.redirect(17, 0x8051)
    first(1, 0)
    second(1, 0)
    first(0, 0)
    assert pc.ack() == 0x51
    pc.wr(APIC + 0xB0, 0)
    assert pc.ack() == 0x51
    second(0, 0)
    pc.wr(APIC + 0xB0, 0)
    assert pc.pins[0] == 0


def test_each_cpu_sees_its_own_apic() -> None:
    pc = Pc(3)
    assert [pc.rd(APIC + 0x20, cpu=c) for c in range(3)] == [0, 1 << 24, 2 << 24]
    pc.wr(APIC + 0xF0, 0x1FF, cpu=1)
    assert [pc.rd(APIC + 0xF0, cpu=c) for c in range(3)] == [0x1FF, 0x1FF, 0xFF]
    pc.wr(APIC + 0x310, 1 << 24)
    pc.wr(APIC + 0x300, 0x4055)
    assert pc.pins == [0, 1, 0] and pc.ack(1) == 0x55
    pc.wr(APIC + 0x300, 0xC0500)
    assert [e for e in pc.log if e[0] == "signal"] == [
        ("signal", 1, "init", 0, 0),
        ("signal", 2, "init", 0, 0),
    ]


def test_an_apic_page_that_moved_or_is_off_uncovers_the_bus(pc: Pc) -> None:
    assert pc.p.write_msr(0, 0x1B, 0xFED40900, 0)
    assert pc.rd(0xFED40030) == 0x50014
    assert pc.rd(APIC + 0x30) == 0xFFFFFFFF
    assert pc.p.read_msr(0, 0x1B, 0) == 0xFED40900
    assert pc.p.read_msr(0, 0x802, 0) is None


def test_nothing_to_acknowledge(pc: Pc) -> None:
    assert pc.ack() == -1


def test_memory_shows_in_cmos() -> None:
    pc = Pc(memory=8 << 30)
    cells = []
    for index in (0x5B, 0x5C, 0x5D):
        pc.outb(0x70, index)
        cells.append(pc.inb(0x71))
    assert int.from_bytes(cells, "little") << 16 == 6 << 30


def test_impossible_cpu_counts_are_refused() -> None:
    for ncpus in (0, 256):
        with pytest.raises(ConfigError, match="CPUs"):
            Pc(ncpus)


def test_state_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="lapic1"):
        Pc(1).p.load(Pc(2).p.state())


def test_device_names_are_unique_and_state_is_json(pc: Pc) -> None:
    names = [d.name for d in pc.p.devices]
    assert len(set(names)) == len(names)
    assert list(pc.p.state()) == [*names, "bus"]
    pc.saved()


def test_reset_is_power_on_but_for_the_clock_on_the_battery(pc: Pc) -> None:
    fresh = json.loads(pc.saved())
    for step in range(300):
        pc.outb((0x20, 0x21, 0xA1, 0x40, 0x43, 0x61, 0x3F9, 0x3FC, 0x602)[step % 9], step * 37 & 0xFF)
    pc.wr(HPET + 0x10, 3)
    pc.redirect(4, 0x44)
    pc.wr(APIC + 0x80, 0x20)
    pc.p.reset(pc.now)
    again = json.loads(pc.saved())
    for state in (fresh, again):
        for kept in ("rtc", "com1", "com2", "bus"):
            del state[0][kept]
    assert again == fresh
    assert pc.pins == [0]


PORTS = {
    "pic": [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1],
    "pit": [0x40, 0x41, 0x42, 0x43, 0x43, 0x61],
    "rtc": [0x70, 0x71, 0x71, 0x72, 0x73],
    "com1": [*range(0x3F8, 0x400)],
    "acpipm": [*range(0x600, 0x606), 0x608, 0x620, 0x628],
    "reset": [0x60, 0x64, 0x92, 0xCF9],
    "post": [0x80, 0xED],
    "pci": [0xCF8, 0xCFC, 0xCFE],
}
MMIO = {
    "lapic0": [APIC + r for r in (0x80, 0xB0, 0xF0, 0x280, 0x300, 0x310, 0x320, 0x350, 0x380, 0x390, 0x3E0)],
    "ioapic": [IOAPIC, IOAPIC + 0x10, IOAPIC + 0x10, IOAPIC + 0x40],
    "hpet": [HPET + r for r in (0x10, 0x20, 0xF0, 0xF4, 0x100, 0x108, 0x10C, 0x120, 0x128, 0x140, 0x148)],
    "host-bridge": [ECAM + r for r in (0, 4, 0x10, 0x60, 0x90, 0x9D)],
    "lpc-bridge": [ECAM + (31 << 15) + r for r in (4, 0x40, 0x60, 0x64, 0x68, 0x80)],
}
# Values that mean something to some register, so that random walks get somewhere.
TELLING = [
    0x00,
    0x01,
    0x02,
    0x03,
    0x0B,
    0x11,
    0x20,
    0x30,
    0x34,
    0x36,
    0x42,
    0x72,
    0x82,
    0xB2,
    0xC1,
    0xE8,
    0xFF,
]

Step = tuple[str, int, int, int]


def steps_for(name: str) -> st.SearchStrategy[list[Step]]:
    addresses = PORTS.get(name) or MMIO[name]
    kind = "io" if name in PORTS else "mmio"
    value = st.one_of(st.sampled_from(TELLING), st.integers(0, 255), st.integers(0, 0xFFFFFFFF))
    wait = st.sampled_from([0, 1, 5, 900, 20_000, 1_000_000, 90_000_000])
    access = st.tuples(
        st.sampled_from([f"{kind} read", f"{kind} write"]), st.sampled_from(addresses), value, wait
    )
    other = st.tuples(
        st.sampled_from(["ack", "type", "irq", "msr", "button", "eoi"]), st.integers(0, 15), value, wait
    )
    return st.lists(st.one_of(access, access, access, other), max_size=40)


def perform(pc: Pc, step: Step) -> object:
    """One step; what the guest or the world sees of it."""
    what, where, value, wait = step
    pc.to(pc.now + wait)
    if what == "io read":
        return pc.bus.port_read(where, 4 if where >= 0xCF8 and where != 0xCF9 else 1, pc.now)
    if what == "io write":
        pc.bus.port_write(where, 4 if where == 0xCF8 else 1, value, pc.now)
    elif what == "mmio read":
        return pc.rd(where)
    elif what == "mmio write":
        pc.wr(where, value)
    elif what == "ack" and pc.pins[0]:
        return pc.ack()
    elif what == "eoi":
        pc.wr(APIC + 0xB0, 0)
        pc.outb(0x20, 0x20)
    elif what == "type":
        pc.p.receive(0, bytes(where), pc.now)
    elif what == "irq" and where != 2:
        pc.p.wiring.pic.set_irq(where, value & 1, pc.now)
        pc.p.ioapic.set_pin(where, value & 1, pc.now)
    elif what == "msr":
        return pc.p.write_msr(0, 0x6E0, pc.now + value, pc.now), pc.p.read_msr(0, 0x6E0, pc.now)
    elif what == "button":
        pc.p.acpipm.press_power_button(pc.now)
    return None


@pytest.mark.parametrize("name", [*PORTS, *MMIO])
@settings(max_examples=40)
@given(data=st.data())
def test_a_restored_machine_goes_on_like_the_original(name: str, data: st.DataObject) -> None:
    """Also: neither slices of the run nor what is looked at change anything."""
    before, after = data.draw(steps_for(name)), data.draw(steps_for(name))
    pc = Pc()
    for step in before:
        perform(pc, step)
    copy = pc.copy()
    assert copy.saved() == pc.saved()
    pc.log.clear()
    for step in after:
        middle = copy.now + step[3] // 3
        copy.clock.run(middle)  # the copy runs in other slices
        copy.saved()
        assert perform(copy, step) == perform(pc, step), step
        assert copy.pins == pc.pins
    assert copy.log == pc.log
    assert copy.saved() == pc.saved()


def test_the_random_walks_reach_interrupts() -> None:
    """Guards the test above: a walk that never raises anything would prove little."""
    pc = Pc()
    pc.init_pic()
    for step in [
        ("io write", 0x43, 0x34, 0),
        ("io write", 0x40, 0x20, 0),
        ("io write", 0x40, 0x00, 0),
        ("ack", 0, 0, 90_000_000),
    ]:
        perform(pc, step)
    assert ("intr", 0, 1) in [e[:3] for e in pc.log]


def _changes(value: object) -> list[object]:
    """`value` with one leaf changed, for each leaf."""
    if isinstance(value, dict):
        return [{**value, key: new} for key, old in value.items() for new in _changes(old)]
    if isinstance(value, list):
        return [[*value[:i], new, *value[i + 1 :]] for i, old in enumerate(value) for new in _changes(old)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value ^ 1]
    assert isinstance(value, bytes), f"{value!r} is not plain data"
    return [value + b"\x01"] if len(value) < 128 else [value[:-1] + b"\x5a"]


def test_every_field_of_every_device_survives_a_load(pc: Pc) -> None:
    state = pc.p.state()
    count = 0
    for name, device_state in state.items():
        for changed in _changes(device_state):
            pc.p.load({**state, name: changed})
            assert pc.p.state()[name] == changed, name
            count += 1
    assert count > 200, "the board has more state than this"


def test_a_loaded_state_is_a_copy(pc: Pc) -> None:
    state = pc.p.state()
    pc.p.load(state)
    before = pc.saved()
    for device in state.values():
        for value in device.values():
            if isinstance(value, list):
                value.clear()
    assert pc.saved() == before
