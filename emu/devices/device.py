"""The face every device shows to the machine.

A device is hardware by its public datasheet. It knows its registers, virtual time and the lines and
callbacks it was built with; it knows no kernel, no CPU, no Python object of the machine. All its
mutable state lives in one dataclass of plain data (`Device.s`), so that a snapshot is
``state()`` and nothing is forgotten; configuration (addresses, wiring) is set in ``__init__`` and
is part of the machine description, not of the state.

Every access carries ``now``, the exact tick of the instruction that makes it. Before a device is
accessed at ``now`` the machine has already run all events due at or before ``now``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from emu.clock import Clock

Line = Callable[[int, int], None]
"""An output line: ``line(level, now)``; level 0 or 1. Calling it with an unchanged level is harmless."""


def plain(value: Any) -> Any:
    """A deep copy of plain data, with dataclasses turned into dicts.

    What `copy.deepcopy` and `dataclasses.asdict` do, at a tenth of their cost: snapshots are taken thousands
    of times in one run, and plain data has no cycles, no aliases and no mutable leaves to care for.
    """
    kind = type(value)
    if kind is int or kind is bool or kind is bytes or kind is str or value is None:
        return value
    if kind is list:
        return [plain(item) for item in value]
    if kind is dict:
        return {key: plain(item) for key, item in value.items()}
    if kind is tuple:
        raise TypeError("a tuple in a device's state would come back from a file as a list")
    return {key: plain(item) for key, item in vars(value).items()}


@dataclass(frozen=True)
class Region:
    """A range of I/O ports or of physical addresses that a device decodes.

    ``read(offset, size, now) -> value`` and ``write(offset, size, value, now)``: ``offset`` in
    bytes from ``base``; ``size`` 1, 2, 4 (ports, MMIO) or 8 (MMIO); values are unsigned and already
    cut to ``size`` bytes on the way in, and are cut by the bus on the way out.
    ``width`` is the widest access the device takes; the bus splits a wider one into aligned
    little-endian pieces of that width, lowest first, and never passes one that runs past the end.
    """

    kind: Literal["io", "mmio"]
    base: int
    size: int
    read: Callable[[int, int, int], int]
    write: Callable[[int, int, int, int], None]
    width: int = 4


class Device:
    """Base class: name, regions, events, state."""

    s: Any
    """The device's whole mutable state: a dataclass of ints, bools, bytes, str, None, and lists or
    dicts (with str keys) of these."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        clock.register(name, self.event)

    def regions(self) -> Sequence[Region]:
        """What the device decodes; fixed for its lifetime unless the bus is told otherwise."""
        return ()

    def event(self, event: str, now: int) -> None:
        """A scheduled event of this device is due. ``now`` is exactly the scheduled tick."""
        raise NotImplementedError(f"{self.name} has no event {event!r}")

    def reset(self, now: int) -> None:
        """The board's reset line: back to power-on, apart from what a battery or another device holds."""

    def at(self, when: int, event: str) -> None:
        """Schedule or move one of this device's own events."""
        self.clock.at(when, self.name, event)

    def cancel(self, event: str) -> None:
        """Drop one of this device's own events, if it is pending."""
        self.clock.cancel(self.name, event)

    def state(self) -> dict[str, Any]:
        """A deep copy of the state as plain data."""
        copied: dict[str, Any] = plain(self.s)
        return copied

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned. Does not move lines: their levels are state elsewhere."""
        self.s = type(self.s)(**plain(state))
