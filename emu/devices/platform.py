"""The standard PC: all devices, wired as on a q35 board.

Knows every device and who is wired to whom; no CPU and no memory. It is built with callbacks for what
leaves the board: CPU pins, INIT/SIPI/NMI, power, and serial output.

Interrupt lines are numbered as the operating system sees them (GSI): ISA IRQ n goes to the 8259 pair and to
I/O APIC pin n, except that IRQ 0 is on pin 2, and the cascade (IRQ 2) is on none. Several sources may share
a line; it is asserted while any of them asserts it. With the HPET's legacy replacement, timers 0 and 1 take
the places of the 8254 and the RTC on IRQ 0 and 8.

What a plain PC does not have is asked for by name (`EXTRAS`), and then is always in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from emu.bus import Bus
from emu.clock import Clock
from emu.devices.acpipm import SCI_IRQ, AcpiPm, ResetControl
from emu.devices.device import Device, Line
from emu.devices.e1000 import E1000
from emu.devices.edu import Edu
from emu.devices.hpet import Hpet
from emu.devices.ioapic import PINS, IoApic
from emu.devices.lapic import ApicBus, LocalApic
from emu.devices.pci import HostBridge, LpcBridge, PciFunction, PciHost
from emu.devices.pcibridge import PciBridge
from emu.devices.pic import Pic
from emu.devices.pit import Pit
from emu.devices.post import Post
from emu.devices.rtc import DEFAULT_EPOCH, Rtc
from emu.devices.uart import Uart
from emu.devices.vtd import IOAPIC_SOURCE, Vtd
from emu.dma import DmaPort, Ram
from emu.errors import ConfigError
from emu.memory import low_split

COM = ((0x3F8, 4), (0x2F8, 3))
"""Base port and IRQ of each serial port."""

FUNCTIONS: dict[str, tuple[int, Callable[[Clock, int, str], PciFunction]]] = {
    "bridge": (1, PciBridge),
    "e1000": (2, E1000),
    "edu": (3, Edu),
}
"""PCI functions that a machine may have: slot on bus 0, and class."""
BEHIND = "bridge/"
"""Before the name of a function that is behind the bridge instead, at slot 0 of its bus."""
EXTRAS = ("vtd", *FUNCTIONS, *(BEHIND + name for name in FUNCTIONS if name != "bridge"))
"""All names of devices that a machine may have in addition."""

_TIMER_IRQ, _RTC_IRQ = 0, 8
_TIMER_PIN = 2


@dataclass
class WiringState:
    """Which sources assert each I/O APIC pin, as bits, and the levels of the sources of ISA IRQ 0 and 8."""

    asserted: list[int] = field(default_factory=lambda: [0] * PINS)
    timer: int = 0  # what the 8254 and the RTC say, also while the HPET has replaced them
    rtc: int = 0
    legacy: list[int] = field(default_factory=lambda: [0, 0])  # HPET timers 0 and 1
    replaced: int = 0


class Wiring(Device):
    """The traces of the board: wired-OR lines, and the HPET's legacy replacement."""

    s: WiringState

    def __init__(self, clock: Clock, pic: Pic, ioapic: IoApic, name: str = "wiring") -> None:
        super().__init__(name, clock)
        self.pic = pic
        self.ioapic = ioapic
        self._sources = 0
        self.s = WiringState()

    def source(self, gsi: int, isa: bool = False) -> Line:
        """A new source on line ``gsi``; with ``isa`` it also drives the 8259s. Called while building."""
        bit = 1 << self._sources
        self._sources += 1

        def line(level: int, now: int) -> None:
            self._drive(gsi, bit, isa, level, now)

        return line

    def pin(self, gsi: int, source: int, level: int, now: int) -> None:
        """Source bit ``source`` drives a line chosen at run time."""
        self._drive(gsi, source, False, level, now)

    def source_bit(self) -> int:
        """A source number for `pin`. To be called while building."""
        bit = 1 << self._sources
        self._sources += 1
        return bit

    def _drive(self, gsi: int, bit: int, isa: bool, level: int, now: int) -> None:
        old = self.s.asserted[gsi]
        new = old | bit if level else old & ~bit
        self.s.asserted[gsi] = new
        if bool(old) == bool(new):
            return
        if isa:
            self.pic.set_irq(gsi, level, now)
        self.ioapic.set_pin(gsi, level, now)

    def timer(self, level: int, now: int) -> None:
        """OUT0 of the 8254."""
        self.s.timer = level
        if not self.s.replaced:
            self._irq0(level, now)

    def rtc(self, level: int, now: int) -> None:
        """IRQ of the RTC."""
        self.s.rtc = level
        if not self.s.replaced:
            self._irq8(level, now)

    def legacy(self, timer: int, level: int, now: int) -> None:
        """HPET timer 0 or 1 in legacy replacement."""
        self.s.legacy[timer] = level
        if self.s.replaced:
            (self._irq8 if timer else self._irq0)(level, now)

    def replace(self, on: int, now: int) -> None:
        """LEG_RT_CNF of the HPET changed."""
        s = self.s
        if on != s.replaced:
            s.replaced = on
            self._irq0(s.legacy[0] if on else s.timer, now)
            self._irq8(s.legacy[1] if on else s.rtc, now)

    def _irq0(self, level: int, now: int) -> None:
        self.pic.set_irq(_TIMER_IRQ, level, now)
        self.ioapic.set_pin(_TIMER_PIN, level, now)

    def _irq8(self, level: int, now: int) -> None:
        self.pic.set_irq(_RTC_IRQ, level, now)
        self.ioapic.set_pin(_RTC_IRQ, level, now)


class Platform:
    """Builds the board and registers it on ``bus``.

    * ``intr(cpu, level, now)``: the INTR pin of a CPU.
    * ``signal(cpu, kind, vector, now)``: "nmi", "init" or "sipi" reaches a CPU.
    * ``power(kind, now)``: the guest asked for "off" or "reset".
    * ``tsc_offset(cpu)``: guest TSC minus tick.
    * ``serial(port, byte, now)``: a character left COM1 (0) or COM2 (1).
    * ``rtc_epoch``: seconds since 1970 at tick 0. ``memory``, ``low_memory``: bytes of RAM in all and below
      4 GiB. ``ram``: RAM itself, for bus masters.
    * ``extras``: names of `EXTRAS`.
    """

    def __init__(
        self,
        clock: Clock,
        bus: Bus,
        ncpus: int = 1,
        *,
        intr: Callable[[int, int, int], None],
        signal: Callable[[int, str, int, int], None],
        power: Callable[[str, int], None],
        tsc_offset: Callable[[int], int] = lambda cpu: 0,
        serial: Callable[[int, int, int], None] = lambda port, byte, now: None,
        rtc_epoch: int = DEFAULT_EPOCH,
        memory: int = 512 << 20,
        low_memory: int | None = None,
        ram: Ram | None = None,
        extras: Sequence[str] = (),
    ) -> None:
        if not 1 <= ncpus <= 255:
            raise ConfigError(f"a machine has 1 to 255 CPUs, not {ncpus}", "ncpus")
        low = low_split(memory) if low_memory is None else low_memory
        self.clock = clock
        self.bus = bus
        self.apic_bus = ApicBus()
        self.dma = DmaPort(ram, self.apic_bus)
        """the way of all bus masters to memory and interrupts; observers go here"""

        def pic_output(level: int, now: int) -> None:
            # INTR goes to LINT0 of the boot CPU only, as on boards since the Pentium.
            self.lapics[0].lint_pin(0, level, now)

        self.pic = Pic(clock, pic_output)
        self.ioapic = IoApic(clock, self.apic_bus)
        self.wiring = Wiring(clock, self.pic, self.ioapic)

        def make_lapic(cpu: int) -> LocalApic:
            return LocalApic(
                clock,
                cpu,
                self.apic_bus,
                intr=lambda level, now: intr(cpu, level, now),
                signal=lambda kind, vector, now: signal(cpu, kind, vector, now),
                tsc_offset=lambda: tsc_offset(cpu),
                extint_acknowledge=self.pic.acknowledge,
            )

        self.lapics = [make_lapic(cpu) for cpu in range(ncpus)]
        self.pit = Pit(clock, self.wiring.timer)
        self.rtc = Rtc(clock, self.wiring.rtc, rtc_epoch, low, memory - low)
        self.uarts = [
            Uart(
                f"com{n + 1}",
                clock,
                base,
                self.wiring.source(irq, isa=True),
                lambda byte, now, port=n: serial(port, byte, now),  # type: ignore[misc]
            )
            for n, (base, irq) in enumerate(COM)
        ]
        self.acpipm = AcpiPm(clock, self.wiring.source(SCI_IRQ, isa=True), power)
        self.reset_control = ResetControl(clock, power)
        self.post = Post(clock)
        hpet_sources = [self.wiring.source_bit() for _ in range(3)]
        self.hpet = Hpet(
            clock,
            route=lambda timer, pin, level, now: self.wiring.pin(pin, hpet_sources[timer], level, now),
            legacy=self.wiring.legacy,
            replace=self.wiring.replace,
        )
        self.pci = PciHost(clock, bus, self.reset_control, self.wiring.source, self.dma)
        self.host_bridge = HostBridge(clock)
        self.lpc_bridge = LpcBridge(clock)
        self.pci.plug(self.host_bridge)
        self.pci.plug(self.lpc_bridge)

        self.devices: list[Device] = [
            self.wiring,
            self.pic,
            self.ioapic,
            *self.lapics,
            self.pit,
            self.hpet,
            self.rtc,
            *self.uarts,
            self.acpipm,
            self.reset_control,
            self.post,
            self.pci,
            self.host_bridge,
            self.lpc_bridge,
        ]
        """Everything that has state, in the order of `state`."""
        for device in self.devices:
            bus.add_all(device.regions())
        bus.add_all(self.apic_bus.regions())
        self.lapics[0].virtual_wire(0)
        self.extras: dict[str, Device] = {}
        """the devices of ``extras`` by name"""
        self._add_extras(extras, ram)

    def _add_extras(self, names: Sequence[str], ram: Ram | None) -> None:
        for name in names:
            if name not in EXTRAS:
                raise ConfigError(f"there is no device {name!r}; there are {', '.join(EXTRAS)}", "devices")
            if names.count(name) > 1:
                raise ConfigError(f"a machine has one {name!r} at most", "devices")
        behind = [name for name in names if name.startswith(BEHIND)]
        if behind and ("bridge" not in names or len(behind) > 1):
            raise ConfigError(f"{', '.join(behind)}: needs a bridge, which has one slot", "devices")
        for name in EXTRAS:  # in this order, whatever the caller's
            if name not in names:
                continue
            if name == "vtd":
                unit = Vtd(self.clock, ram, self.apic_bus)
                self.dma.iommu = unit
                self.ioapic.send = lambda *message: self.dma.message(IOAPIC_SOURCE, *message)
                self.devices.append(unit)
                self.bus.add_all(unit.regions())
                self.extras[name] = unit
                continue
            bridge = self.extras.get("bridge") if name in behind else None
            slot, make = FUNCTIONS[name.removeprefix(BEHIND)]
            function = make(self.clock, 0 if bridge else slot, name)
            self.plug(function, bridge if isinstance(bridge, PciBridge) else None)
            self.extras[name] = function

    def card(self, name: str = "") -> E1000:
        """A network card by its name, the first without. ConfigError when there is none."""
        cards = {one: card for one, card in self.extras.items() if isinstance(card, E1000)}
        name = name or next(iter(cards), "e1000")
        if name not in cards:
            raise ConfigError(f"this machine has no network card {name!r}", "devices")
        return cards[name]

    def plug(self, function: PciFunction, bridge: PciBridge | None = None) -> None:
        """Put one more PCI function into the machine, or behind a bridge. To be called before it runs."""
        (bridge or self.pci).plug(function)
        self.devices.append(function)
        self.bus.add_all(function.regions())

    # --- what CPUs do ---

    def acknowledge(self, cpu: int, now: int) -> int:
        """CPU ``cpu`` takes an interrupt: its vector, or -1 when there is none."""
        return self.lapics[cpu].acknowledge(now)

    def mmio_read(self, cpu: int, address: int, size: int, now: int) -> int:
        """A load by a CPU from outside RAM: its own APIC page, or the bus."""
        lapic = self.lapics[cpu]
        if address & ~0xFFF == lapic.mmio_base:
            return lapic.mmio_read(address & 0xFFF, size, now)
        return self.bus.mmio_read(address, size, now)

    def mmio_write(self, cpu: int, address: int, size: int, value: int, now: int) -> None:
        """A store by a CPU to outside RAM."""
        lapic = self.lapics[cpu]
        if address & ~0xFFF == lapic.mmio_base:
            lapic.mmio_write(address & 0xFFF, size, value, now)
        else:
            self.bus.mmio_write(address, size, value, now)

    def read_msr(self, cpu: int, msr: int, now: int) -> int | None:
        """RDMSR of one of the APIC's MSRs (`LocalApic.owns_msr`); None means #GP."""
        return self.lapics[cpu].read_msr(msr, now)

    def write_msr(self, cpu: int, msr: int, value: int, now: int) -> bool:
        """WRMSR of one of the APIC's MSRs; False means #GP."""
        return self.lapics[cpu].write_msr(msr, value, now)

    # --- what the world does ---

    def receive(self, port: int, data: bytes, now: int) -> None:
        """Characters arrive at COM1 (0) or COM2 (1)."""
        self.uarts[port].receive(data, now)

    def reset(self, now: int) -> None:
        """The board's reset line: every device as after power-on; the RTC goes on and keeps its RAM."""
        for device in self.devices:
            device.reset(now)
        self.lapics[0].virtual_wire(now)

    # --- state ---

    def state(self) -> dict[str, Any]:
        """The state of every device by name, and the bus's counters."""
        out: dict[str, Any] = {device.name: device.state() for device in self.devices}
        out["bus"] = self.bus.state()
        return out

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned, from a machine of the same description."""
        expected = {device.name for device in self.devices} | {"bus"}
        if set(state) != expected:
            different = ", ".join(sorted(set(state) ^ expected))
            raise ConfigError(f"the saved machine has other devices than this one: {different}", "devices")
        for device in self.devices:
            device.load(state[device.name])
        self.bus.load(state["bus"])
        self.pci.remap()
