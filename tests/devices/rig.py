"""A clock that a test moves by hand, and lines that remember what happened to them."""

from __future__ import annotations

from collections.abc import Iterable

from emu.bus import Bus
from emu.clock import Clock
from emu.devices.device import Device


class Wire:
    """An output line: its level, and every change as (level, tick)."""

    def __init__(self) -> None:
        self.level = 0
        self.changes: list[tuple[int, int]] = []

    def __call__(self, level: int, now: int) -> None:
        if level != self.level:
            self.level = level
            self.changes.append((level, now))

    def rises(self) -> list[int]:
        """Ticks of the rising edges, which are then forgotten."""
        out = [now for level, now in self.changes if level]
        self.changes.clear()
        return out


class Rig:
    """Devices on a bus at a virtual time. Accesses happen at `now`, with all due events run before."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.bus = Bus()
        self.now = 0

    def add(self, *devices: Device) -> None:
        for device in devices:
            self.bus.add_all(device.regions())

    def to(self, now: int) -> None:
        """Go to an absolute tick."""
        assert now >= self.now, "time goes forward"
        self.clock.run(now)
        self.now = now

    def after(self, ticks: int) -> None:
        self.to(self.now + ticks)

    def idle(self) -> int | None:
        """Jump to the next event and run it; its tick, or None when nothing is pending."""
        if not self.clock.state():
            return None
        self.to(self.clock.deadline())
        return self.now

    def inb(self, port: int) -> int:
        return self.bus.port_read(port, 1, self.now)

    def outb(self, port: int, value: int) -> None:
        self.bus.port_write(port, 1, value, self.now)

    def outs(self, port: int, values: Iterable[int]) -> None:
        for value in values:
            self.outb(port, value)

    def read(self, address: int, size: int = 4) -> int:
        return self.bus.mmio_read(address, size, self.now)

    def write(self, address: int, value: int, size: int = 4) -> None:
        self.bus.mmio_write(address, size, value, self.now)
