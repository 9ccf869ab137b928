"""A PCI Express root port (PCIe 7.5.1.3, PCI-to-PCI bridge architecture 1.2): a bus behind bus 0.

Software numbers the bus and opens windows; a BAR behind the bridge is decoded only inside a window and only
while the bridge's COMMAND says so, and requests from behind pass only while the bridge may master the bus.
They keep their own requester id, as behind a root port; with ``conventional`` the bridge is one to a PCI
bus and puts its own id on them, so that an IOMMU cannot tell the devices behind it apart.

INTA to INTD of a device behind it turn with its slot and arrive at the bridge's own slot. A secondary bus
reset resets all that is behind it, and while it lasts nothing there answers. Legacy VGA and ISA modes are
kept in their registers and change nothing; there is no hot plug.
"""

from __future__ import annotations

from emu.clock import Clock
from emu.devices.device import Region
from emu.devices.pci import (
    COMMAND,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    D0,
    PciFunction,
    put_on_bus,
)  # fmt: skip
from emu.errors import ConfigError

SECONDARY_BUS, SUBORDINATE_BUS = 0x19, 0x1A
IO_BASE, IO_LIMIT, SECONDARY_STATUS = 0x1C, 0x1D, 0x1E
MEMORY_BASE, MEMORY_LIMIT, PREFETCH_BASE, PREFETCH_LIMIT = 0x20, 0x22, 0x24, 0x26
PREFETCH_BASE_HIGH, PREFETCH_LIMIT_HIGH = 0x28, 0x2C
BRIDGE_CONTROL, SECONDARY_RESET = 0x3E, 1 << 6
_ROOT_PORT = 4


class PciBridge(PciFunction):
    """82Q35's root port (8086:29c1), or with ``conventional`` a plain PCI-to-PCI bridge of the same make."""

    def __init__(self, clock: Clock, slot: int, name: str = "bridge", *, conventional: bool = False) -> None:
        super().__init__(
            name, clock, slot, vendor=0x8086, device=0x29C1, class_code=0x060400, header_type=1, pin=1,
            express=not conventional,
        )  # fmt: skip
        self.conventional = conventional
        self.children: dict[int, PciFunction] = {}
        self.allow(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER)
        self.define(0x18, 4, 0, writable=0x00FF_FFFF)  # bus numbers
        self.define(IO_BASE, 2, 0, writable=0xF0F0)
        self.define(SECONDARY_STATUS, 2, 0, clearable=0xF900)
        self.define(MEMORY_BASE, 4, 0, writable=0xFFF0_FFF0)
        self.define(PREFETCH_BASE, 4, 0x0001_0001, writable=0xFFF0_FFF0)  # 64 bits
        self.define(PREFETCH_BASE_HIGH, 8, 0, writable=(1 << 64) - 1)
        self.define(BRIDGE_CONTROL, 2, 0, writable=0x007F)
        self.add_power_management(no_soft_reset=True)
        if not conventional:
            self.add_express(_ROOT_PORT)

    def plug(self, function: PciFunction) -> None:
        """Put a function on the bus behind. ConfigError when its place is taken."""
        if self.host is None:
            raise ConfigError("the bridge must be plugged first", self.name)
        if isinstance(function, PciBridge):
            raise ConfigError("bridges are not nested", function.name)
        put_on_bus(self.children, function, f"the bus behind {self.name}")
        function.parent = self
        self.host.adopt(function, self.slot, function.slot)

    def requester_of(self, devfn: int) -> int:
        """Requester id of device << 3 | function behind the bridge."""
        return self.requester if self.conventional else self.s.config[SECONDARY_BUS] << 8 | devfn

    def behind(self, bus: int) -> dict[int, PciFunction] | None:
        """The functions on bus ``bus``, if it is behind this bridge."""
        secondary, subordinate = self.s.config[SECONDARY_BUS], self.s.config[SUBORDINATE_BUS]
        if self.power_state != D0 or not 0 < secondary <= bus <= subordinate:
            return None
        in_reset = self.register(BRIDGE_CONTROL, 2) & SECONDARY_RESET
        return self.children if bus == secondary and not in_reset else {}

    def config_write(self, offset: int, size: int, value: int, now: int) -> None:
        """Also starts a secondary bus reset."""
        before = self.register(BRIDGE_CONTROL, 2)
        super().config_write(offset, size, value, now)
        if self.register(BRIDGE_CONTROL, 2) & ~before & SECONDARY_RESET:
            for function in self.children.values():
                function.reset(now)

    def decoded(self) -> list[Region]:
        """What is behind the bridge and inside its windows."""
        if self.power_state != D0:
            return []
        windows = self._windows()
        return [
            region
            for key in sorted(self.children)
            for region in self.children[key].decoded()
            if any(
                kind == region.kind and first <= region.base and region.base + region.size - 1 <= last
                for kind, first, last in windows
            )
        ]

    def _windows(self) -> list[tuple[str, int, int]]:
        """(kind, first, last address) of what is passed on to the bus behind."""
        command = self.register(COMMAND, 2)
        out = []
        if command & COMMAND_IO:
            first, last = self.register(IO_BASE, 1), self.register(IO_LIMIT, 1)
            out.append(("io", (first & 0xF0) << 8, (last & 0xF0) << 8 | 0xFFF))
        if command & COMMAND_MEMORY:
            first, last = self.register(MEMORY_BASE, 2), self.register(MEMORY_LIMIT, 2)
            out.append(("mmio", (first & 0xFFF0) << 16, (last & 0xFFF0) << 16 | 0xF_FFFF))
            first, last = self.register(PREFETCH_BASE, 2), self.register(PREFETCH_LIMIT, 2)
            high, high_last = self.register(PREFETCH_BASE_HIGH, 4), self.register(PREFETCH_LIMIT_HIGH, 4)
            first, last = high << 32 | (first & 0xFFF0) << 16, high_last << 32 | (last & 0xFFF0) << 16
            out.append(("mmio", first, last | 0xF_FFFF))
        return out
