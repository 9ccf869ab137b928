"""PCI configuration space (PCI local bus 3.0, PCI Express 7.2.2, Q35 and ICH9 data sheets).

`PciHost` knows both ways into configuration space, 0xCF8/0xCFC and ECAM, and which BARs are decoded where.
`PciFunction` is what a device builds on: 256 bytes (or 4 KiB) of registers with masks that say which bits
software may write or clear, BARs, capabilities, INTx, MSI, DMA, power states and function reset. The two
bridges of q35 that every PC has are here too (bridges to other buses: `emu.devices.pcibridge`); a device
may not know more of the host than the calls of `PciFunction`.

A function that is no bus master does no DMA and sends no message. In D3hot it has configuration space and
nothing else, and on the way back to D0 it is reset, unless its capability says No_Soft_Reset. A function
reset is power-on for the device and its configuration space, and takes no time.

A function that is not there reads as all ones. What a BAR decodes follows from configuration space alone,
so a restored machine decodes the same. Where a BAR overlaps a device of the board, or a BAR of a function
before it, the other wins and the BAR decodes nothing: a misprogrammed machine, but a deterministic one.

INTx is wired as q35 wires it: slots 0 to 24 to I/O APIC pins 20 to 23, turning with the slot; slots 25 to
31 to pins 16 to 19. The PIRQ routing to the 8259 pair is kept in registers and not wired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from emu.bus import Bus
from emu.clock import Clock
from emu.devices.acpipm import PM_BASE, ResetControl
from emu.devices.device import Device, Line, Region
from emu.dma import DmaPort
from emu.errors import ConfigError

ECAM_BASE, ECAM_SIZE = 0xB000_0000, 256 << 20
CONFIG_ADDRESS = 0xCF8

VENDOR, DEVICE, COMMAND, STATUS, REVISION, CLASS = 0x00, 0x02, 0x04, 0x06, 0x08, 0x09
HEADER_TYPE, BAR0 = 0x0E, 0x10
SUBSYSTEM_VENDOR, SUBSYSTEM, CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN = 0x2C, 0x2E, 0x34, 0x3C, 0x3D
COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_NO_INTX = 1, 2, 4, 1 << 10
STATUS_INTX, STATUS_CAPABILITIES = 1 << 3, 1 << 4
_STATUS_ERRORS = 0xF900  # write 1 to clear
CAP_POWER, CAP_MSI, CAP_EXPRESS, CAP_ADVANCED = 0x01, 0x05, 0x10, 0x13
D0, D3HOT = 0, 3


def intx_gsi(slot: int, pin: int) -> int:
    """I/O APIC pin of INTA (0) to INTD (3) of a slot on bus 0."""
    return 20 + (slot + pin & 3) if slot < 25 else 16 + pin


@dataclass(frozen=True)
class Bar:
    """One base address register: ``size`` a power of two; ``wide`` takes two registers."""

    index: int
    kind: Literal["io", "mmio"]
    size: int
    read: Callable[[int, int, int], int]
    write: Callable[[int, int, int, int], None]
    width: int = 4
    prefetchable: bool = False
    wide: bool = False


class Upstream(Protocol):
    """What a function behind a bridge knows of the bridge."""

    @property
    def bus_master(self) -> bool:
        """Whether requests from below are passed on."""

    def requester_of(self, devfn: int) -> int:
        """Requester id that a request of device << 3 | function has on the upper side."""


@dataclass
class PciState:
    """Configuration space. A device with more state extends this."""

    config: bytes
    intx: int = 0  # what the function wants, before COMMAND_NO_INTX


class PciFunction(Device):
    """One function. Built by `define`, `add_bar`, `add_capability`; then plugged into a `PciHost`."""

    s: PciState

    def __init__(
        self,
        name: str,
        clock: Clock,
        slot: int,
        function: int = 0,
        *,
        vendor: int,
        device: int,
        class_code: int,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        header_type: int = 0,
        pin: int = 0,
        express: bool = False,
    ) -> None:
        """``class_code``: class, subclass, interface in 24 bits. ``pin``: 0 none, 1 to 4 for INTA to INTD."""
        super().__init__(name, clock)
        self.slot = slot
        self.function = function
        self.devfn = slot << 3 | function
        self.host: PciHost | None = None
        self.dma: DmaPort | None = None
        """the way to memory, once plugged; use `dma_read` and `dma_write`"""
        self.parent: Upstream | None = None
        """the bridge that this function is behind; None on bus 0"""
        self.writer = f"dma:{name}"
        """who this is to observers of memory"""
        self.size = 4096 if express else 256
        self.initial = bytearray(self.size)
        self.writable = bytearray(self.size)
        self.clearable = bytearray(self.size)
        self.bars: list[Bar] = []
        self.msi_at = 0
        self.power_at = 0
        self._reset_bit: tuple[int, int] | None = None  # where software starts a function reset: offset, bit
        self._last_capability = 0
        self._next_capability = 0x40
        self._intx_line: Line | None = None
        self.s = PciState(bytes(self.size))
        self.define(VENDOR, 2, vendor)
        self.define(DEVICE, 2, device)
        self.define(STATUS, 2, 0, clearable=_STATUS_ERRORS)
        self.define(REVISION, 1, revision)
        self.define(CLASS, 3, class_code)
        self.define(HEADER_TYPE, 1, header_type)
        if not header_type & 0x7F:
            self.define(SUBSYSTEM_VENDOR, 2, subsystem[0])
            self.define(SUBSYSTEM, 2, subsystem[1])
        self.define(COMMAND, 2, 0, writable=COMMAND_NO_INTX if pin else 0)
        self.define(INTERRUPT_LINE, 1, 0, writable=0xFF if pin else 0)
        self.define(INTERRUPT_PIN, 1, pin)

    # --- building ---

    def define(self, offset: int, size: int, value: int, writable: int = 0, clearable: int = 0) -> None:
        """Give a register its power-on value, the bits software may write, and those a written 1 clears."""
        end = offset + size
        self.initial[offset:end] = value.to_bytes(size, "little")
        self.writable[offset:end] = writable.to_bytes(size, "little")
        self.clearable[offset:end] = clearable.to_bytes(size, "little")
        self.s.config = bytes(self.initial)

    def allow(self, offset: int, size: int, writable: int) -> None:
        """Make more bits of a register writable."""
        for i, bits in enumerate(writable.to_bytes(size, "little")):
            self.writable[offset + i] |= bits

    def add_bar(self, bar: Bar) -> None:
        """Add a base address register (PCI 3.0, 6.2.5). ConfigError for a size that no BAR can have."""
        smallest = 4 if bar.kind == "io" else 16
        if bar.size & (bar.size - 1) or bar.size < smallest:
            raise ConfigError(f"a BAR of {bar.size} bytes is not possible", f"{self.name} BAR {bar.index}")
        if bar.wide and bar.kind == "io":
            raise ConfigError("an I/O BAR has 32 bits", f"{self.name} BAR {bar.index}")
        at = BAR0 + 4 * bar.index
        length = 8 if bar.wide else 4
        flags = 1 if bar.kind == "io" else (4 if bar.wide else 0) | (8 if bar.prefetchable else 0)
        # Size is found by writing all ones: the bits below it stay 0.
        self.define(at, length, flags, writable=(1 << 8 * length) - bar.size)
        self.bars.append(bar)
        self.allow(COMMAND, 2, COMMAND_IO if bar.kind == "io" else COMMAND_MEMORY)

    def add_capability(self, identity: int, body: bytes, writable: bytes = b"", at: int = 0) -> int:
        """Append to the capability list and return the offset; ``body`` follows identity and link.

        ``writable`` masks ``body``; ``at`` chooses the place (0: the next free one).
        """
        at = at or self._next_capability
        if at & 3 or at < 0x40 or at + 2 + len(body) > 0x100:
            raise ConfigError(f"no room for capability {identity:#x} at {at:#x}", self.name)
        self.define(at, 2, identity)
        for i, value in enumerate(body):
            self.define(at + 2 + i, 1, value, writable[i] if i < len(writable) else 0)
        link = self._last_capability + 1 if self._last_capability else CAPABILITIES
        self.define(link, 1, at)
        self.initial[STATUS] |= STATUS_CAPABILITIES
        self.s.config = bytes(self.initial)
        self._last_capability = at
        self._next_capability = at + 2 + len(body) + 3 & ~3
        return at

    def add_msi(self, at: int = 0) -> int:
        """Add a message-signalled interrupt capability: one vector, 64-bit address (PCI 3.0, 6.8.1)."""
        body = (0x0080).to_bytes(2, "little") + bytes(10)
        # enable; vectors allocated (kept, though only one is offered); address; data
        writable = b"\x71\x00" + b"\xfc\xff\xff\xff" + b"\xff" * 4 + b"\xff\xff"
        self.msi_at = self.add_capability(CAP_MSI, body, writable, at)
        self.allow(COMMAND, 2, COMMAND_MASTER)
        return self.msi_at

    def add_power_management(self, *, no_soft_reset: bool = False, at: int = 0) -> int:
        """Add a power management capability with D0 and D3hot and without PME (PCI PM 1.2, 3.2)."""
        # version 3; PMCSR: power state, No_Soft_Reset
        body = (3).to_bytes(2, "little") + bytes((8 if no_soft_reset else 0, 0, 0, 0))
        self.power_at = self.add_capability(CAP_POWER, body, b"\0\0\x03", at)
        return self.power_at

    def add_function_reset(self, at: int = 0) -> int:
        """Add an advanced features capability with function level reset (PCI ECN "Advanced Capabilities")."""
        offset = self.add_capability(CAP_ADVANCED, b"\x06\x03\x00\x00", b"", at)
        self._reset_bit = (offset + 4, 1)
        return offset

    def add_express(self, kind: int, *, at: int = 0) -> int:
        """Add a PCI Express capability, version 2, of port type ``kind`` (PCIe 7.8): x1, 2.5 GT/s, link up.

        An endpoint (0, 9) gets function level reset with it.
        """
        endpoint = kind in (0, 9)
        registers = bytearray(58)
        registers[0:2] = (2 | kind << 4).to_bytes(2, "little")
        registers[2:6] = (1 << 15 | (1 << 28 if endpoint else 0)).to_bytes(4, "little")  # device capabilities
        registers[10:14] = (1 | 1 << 4 | 1 << 20).to_bytes(4, "little")  # link: 2.5 GT/s, x1, says if up
        registers[16:18] = (1 | 1 << 4 | 1 << 13).to_bytes(2, "little")  # link status
        writable = bytearray(58)
        writable[6:8] = b"\xff\x7f"  # device control
        writable[14:16] = b"\xfb\x0f"  # link control
        writable[22:24] = b"\xff\x1f"  # slot control
        writable[26:28] = b"\x1f\x00"  # root control
        offset = self.add_capability(CAP_EXPRESS, bytes(registers), bytes(writable), at)
        if endpoint:
            self._reset_bit = (offset + 9, 0x80)
        return offset

    # --- use by the device ---

    def register(self, offset: int, size: int) -> int:
        """A register's value now."""
        return int.from_bytes(self.s.config[offset : offset + size], "little")

    def poke(self, offset: int, size: int, value: int) -> None:
        """The device itself changes a register, also a read-only one."""
        config = self.s.config
        self.s.config = config[:offset] + value.to_bytes(size, "little") + config[offset + size :]

    @property
    def power_state(self) -> int:
        """`D0` or `D3HOT`."""
        return self.s.config[self.power_at + 4] & 3 if self.power_at else D0

    @property
    def requester(self) -> int:
        """The id on this function's requests: bus << 8 | device << 3 | function."""
        return self.devfn if self.parent is None else self.parent.requester_of(self.devfn)

    @property
    def bus_master(self) -> bool:
        """Whether the function's requests get anywhere: it and all bridges above may master the bus."""
        config = self.s.config
        if not config[COMMAND] & COMMAND_MASTER or (self.power_at and config[self.power_at + 4] & 3):
            return False
        return self.parent is None or self.parent.bus_master

    def dma_read(self, iova: int, size: int, now: int) -> bytes:
        """``size`` bytes of memory at bus address ``iova``. All ones where nothing is or may be read."""
        if self.dma is None or not self.bus_master:
            return b"\xff" * size
        return self.dma.read(self.requester, iova, size, now)

    def dma_write(self, iova: int, data: bytes, now: int) -> None:
        """Store ``data`` at bus address ``iova``, if the function may."""
        if self.dma is not None and self.bus_master:
            self.dma.write(self.requester, iova, data, now, self.writer)

    @property
    def msi_enabled(self) -> bool:
        """Whether software chose MSI."""
        return bool(self.msi_at and self.register(self.msi_at + 2, 2) & 1)

    def send_msi(self, now: int) -> None:
        """Signal by message, if enabled and allowed to master the bus: a write like any other."""
        if self.msi_enabled:
            data = self.s.config[self.msi_at + 12 : self.msi_at + 14] + b"\0\0"
            self.dma_write(self.register(self.msi_at + 4, 8), data, now)

    def set_intx(self, level: int, now: int) -> None:
        """Assert or release the function's interrupt pin. Nothing comes out while MSI is enabled."""
        self.s.intx = level
        self._drive_intx(now)

    def _drive_intx(self, now: int) -> None:
        status = self.register(STATUS, 2)
        wanted = status | STATUS_INTX if self.s.intx else status & ~STATUS_INTX
        if wanted != status:
            self.poke(STATUS, 2, wanted)
        if self._intx_line is not None:
            off = self.register(COMMAND, 2) & COMMAND_NO_INTX or self.msi_enabled or self.power_state != D0
            self._intx_line(1 if self.s.intx and not off else 0, now)

    def reset(self, now: int) -> None:
        """Power-on, or a function reset. A device with more state extends this and drops its events."""
        self.s.config = bytes(self.initial)
        self.s.intx = 0
        self._drive_intx(now)
        if self.host is not None:
            self.host.remap()

    # --- configuration accesses ---

    def config_read(self, offset: int, size: int, now: int) -> int:
        """Read configuration space; past its end all ones."""
        if offset + size > self.size:
            return (1 << 8 * size) - 1
        return int.from_bytes(self.s.config[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int, now: int) -> None:
        """Write configuration space through its masks."""
        if offset + size > self.size:
            return
        old = self.s.config
        power = self.power_state
        new = bytearray(old)
        for i, byte in enumerate(value.to_bytes(size, "little")):
            at = offset + i
            mask = self.writable[at]
            new[at] = (old[at] & ~mask | byte & mask) & ~(byte & self.clearable[at])
            if self._reset_bit is not None and at == self._reset_bit[0] and byte & self._reset_bit[1]:
                self.reset(now)
                return
        if self.power_at and new[self.power_at + 4] & 3 not in (D0, D3HOT):
            new[self.power_at + 4] = old[self.power_at + 4]  # a state that is not offered is not entered
        if new != old:
            self.s.config = bytes(new)
            if power == D3HOT and self.power_state == D0 and not new[self.power_at + 4] & 8:
                self.reset(now)
            self._drive_intx(now)
            if self.host is not None and (offset < 0x40 or self.power_state != power):
                self.host.remap()
        self.config_written(offset, size, now)

    def config_written(self, offset: int, size: int, now: int) -> None:
        """Software wrote these registers. For devices that react."""

    def behind(self, bus: int) -> dict[int, PciFunction] | None:
        """The functions on bus ``bus`` by device << 3 | function, where this is a bridge that leads there."""
        return None

    def decoded(self) -> list[Region]:
        """What the BARs decode now."""
        out: list[Region] = []
        if self.power_state != D0:
            return out
        command = self.register(COMMAND, 2)
        for bar in self.bars:
            if not command & (COMMAND_IO if bar.kind == "io" else COMMAND_MEMORY):
                continue
            base = self.register(BAR0 + 4 * bar.index, 8 if bar.wide else 4) & -bar.size
            limit = 1 << 16 if bar.kind == "io" else 1 << 52
            if 0 < base <= limit - bar.size:
                out.append(Region(bar.kind, base, bar.size, bar.read, bar.write, bar.width))
        return out


@dataclass
class PciHostState:
    """CONFIG_ADDRESS."""

    address: int = 0


class PciHost(Device):
    """Configuration accesses and BAR decoding of bus 0 and of what is behind its bridges."""

    s: PciHostState

    def __init__(
        self,
        clock: Clock,
        bus: Bus,
        reset_control: ResetControl,
        source: Callable[[int], Line],
        dma: DmaPort,
        name: str = "pci",
    ) -> None:
        """``source(gsi)`` gives a new line to an I/O APIC pin; 0xCF9 belongs to ``reset_control``."""
        super().__init__(name, clock)
        self.bus = bus
        self.reset_control = reset_control
        self.source = source
        self.dma = dma
        self.functions: dict[int, PciFunction] = {}
        self._mapped: list[Region] = []
        self.s = PciHostState()

    def regions(self) -> Sequence[Region]:
        """0xCF8 to 0xCFF, and ECAM."""
        return (
            Region("io", CONFIG_ADDRESS, 8, self._read_ports, self._write_ports, width=4),
            Region("mmio", ECAM_BASE, ECAM_SIZE, self._read_ecam, self._write_ecam, width=4),
        )

    def plug(self, function: PciFunction) -> None:
        """Put a function on bus 0. ConfigError when its place is taken."""
        put_on_bus(self.functions, function, "bus 0")
        self.adopt(function, function.slot, 0)

    def adopt(self, function: PciFunction, slot: int, turn: int) -> None:
        """Connect a function to this host. Its INTA arrives at ``slot`` of bus 0, ``turn`` pins on."""
        function.host = self
        function.dma = self.dma
        pin = function.initial[INTERRUPT_PIN]
        if pin:
            function._intx_line = self.source(intx_gsi(slot, turn + pin - 1 & 3))

    def find(self, where: int) -> PciFunction | None:
        """The function at bus << 8 | device << 3 | function, as bus numbers are programmed now."""
        if not where >> 8:
            return self.functions.get(where)
        for function in self.functions.values():
            found = function.behind(where >> 8)
            if found is not None:
                return found.get(where & 0xFF)
        return None

    def reset(self, now: int) -> None:
        """Power-on."""
        self.s = PciHostState()

    def remap(self) -> None:
        """Decode what configuration space says now."""
        wanted = [r for key in sorted(self.functions) for r in self.functions[key].decoded()]
        for region in self._mapped:
            self.bus.remove(region)
        self._mapped = []
        for region in wanted:
            if self.bus.overlapping(region.kind, region.base, region.size) is None:
                self.bus.add(region)
                self._mapped.append(region)

    # --- the two ways in ---

    def _read_ports(self, offset: int, size: int, now: int) -> int:
        if offset >= 4:
            address = self.s.address
            if not address >> 31:
                return _ones(size)
            return self._config_read(address >> 8 & 0xFFFF, address & 0xFC | offset & 3, size, now)
        if size == 4:
            return self.s.address
        if offset == 1 and size == 1:
            return self.reset_control.read_cf9(now)
        return _ones(size)

    def _write_ports(self, offset: int, size: int, value: int, now: int) -> None:
        address = self.s.address
        if offset >= 4:
            if address >> 31:
                self._config_write(address >> 8 & 0xFFFF, address & 0xFC | offset & 3, size, value, now)
        elif size == 4:
            self.s.address = value & 0x80FF_FFFC
        elif offset == 1 and size == 1:
            # Only whole words reach CONFIG_ADDRESS (PCI 3.0 section 3.2.2.3.2), so this byte is free for
            # another.
            self.reset_control.write_cf9(value, now)

    def _read_ecam(self, offset: int, size: int, now: int) -> int:
        return self._config_read(offset >> 12, offset & 0xFFF, size, now)

    def _write_ecam(self, offset: int, size: int, value: int, now: int) -> None:
        self._config_write(offset >> 12, offset & 0xFFF, size, value, now)

    def _config_read(self, where: int, register: int, size: int, now: int) -> int:
        function = self.find(where)
        return _ones(size) if function is None else function.config_read(register, size, now)

    def _config_write(self, where: int, register: int, size: int, value: int, now: int) -> None:
        function = self.find(where)
        if function is not None:
            function.config_write(register, size, value, now)


class HostBridge(PciFunction):
    """Intel 82Q35 memory controller hub, 00:00.0 (Q35 data sheet, 316966, chapter 5)."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(
            "host-bridge", clock, 0, vendor=0x8086, device=0x29C0, class_code=0x060000, revision=0,
            subsystem=(0x1AF4, 0x1100),
        )  # fmt: skip
        self.define(COMMAND, 2, COMMAND_MEMORY | COMMAND_MASTER)
        # PCIEXBAR is set up by firmware and locked: moving ECAM would contradict the MCFG table.
        self.define(0x60, 8, ECAM_BASE | 1)
        self.define(0x90, 7, 0, writable=(1 << 56) - 1)  # PAM: kept, all of the region is RAM
        self.define(0x9D, 2, 0x3802, writable=0xC078)  # SMRAM, ESMRAMC: kept, there is no SMM


class LpcBridge(PciFunction):
    """Intel ICH9 LPC interface, 00:1f.0 (ICH9 data sheet, 316972, chapter 13)."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(
            "lpc-bridge", clock, 31, vendor=0x8086, device=0x2918, class_code=0x060100, revision=2,
            subsystem=(0x1AF4, 0x1100), header_type=0x80,
        )  # fmt: skip
        self.define(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER)
        self.define(0x40, 4, PM_BASE | 1)  # PMBASE, set up by firmware
        self.define(0x44, 1, 0x80)  # ACPI_CNTL: enabled, SCI on IRQ 9
        self.define(0x48, 4, 1)  # GPIOBASE: none
        self.define(0x60, 4, 0x8080_8080, writable=0x8F8F_8F8F)  # PIRQA to PIRQD: not routed to the 8259
        self.define(0x64, 1, 0x10, writable=0xFF)  # serial IRQ control
        self.define(0x68, 4, 0x8080_8080, writable=0x8F8F_8F8F)  # PIRQE to PIRQH
        self.define(0x80, 6, 0, writable=0xFFFF_3F1F_7377)  # which LPC ranges are decoded: kept
        self.define(0xA0, 4, 0, writable=0xFFFF_FFFF)  # power management configuration: kept


def put_on_bus(functions: dict[int, PciFunction], function: PciFunction, bus: str) -> None:
    """Take a place on a bus. ConfigError when it is taken, or is no place."""
    if not (0 <= function.slot < 32 and 0 <= function.function < 8) or function.devfn in functions:
        where = f"{function.slot:02x}.{function.function} {function.name}"
        raise ConfigError(f"no such place on {bus}, or it is taken", where)
    functions[function.devfn] = function


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1
