"""Virtual time and the queue of device events.

One tick is one nanosecond of guest time: instructions retired plus ticks skipped while every CPU
was halted. The clock belongs to the machine. Nothing of the host's time enters here.

An event is plain data: *which device*, *which of its events*, *when*. There is at most one pending
event for each (device, event name); scheduling it again moves it. Events due at the same tick run
in the order in which their devices were registered, then by name: the order never depends on who
scheduled first, so a restored queue runs like the original one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

NEVER = (1 << 64) - 1
"""A time that never comes: the deadline of an empty queue."""

EventHandler = Callable[[str, int], None]


class Clock:
    """Event queue in virtual time.

    ``on_deadline`` is called whenever the earliest deadline may have changed, with that deadline in
    ticks (`NEVER` when nothing is pending), so that the CPU core stops exactly there.
    """

    def __init__(self, on_deadline: Callable[[int], None] = lambda _: None) -> None:
        self._handlers: dict[str, EventHandler] = {}
        self._rank: dict[str, int] = {}
        self._due: dict[tuple[str, str], int] = {}
        self._heap: list[tuple[int, int, str, str]] = []
        self._on_deadline = on_deadline

    def register(self, device: str, handler: EventHandler) -> None:
        """Let ``device`` own events; ``handler(name, when)`` runs at exactly tick ``when``."""
        if device in self._handlers:
            raise ValueError(f"device {device!r} is registered twice")
        self._rank[device] = len(self._rank)
        self._handlers[device] = handler

    def at(self, when: int, device: str, event: str) -> None:
        """Schedule (or move) ``event`` of ``device`` to absolute tick ``when``."""
        self._due[(device, event)] = when
        heapq.heappush(self._heap, (when, self._rank[device], event, device))
        self._announce()

    def cancel(self, device: str, event: str) -> None:
        """Drop a pending event; nothing happens when there is none."""
        if self._due.pop((device, event), None) is not None:
            self._announce()

    def due(self, device: str, event: str) -> int | None:
        """When the event is due, or None."""
        return self._due.get((device, event))

    def deadline(self) -> int:
        """Tick of the earliest pending event, or `NEVER`."""
        while self._heap:
            when, _, event, device = self._heap[0]
            if self._due.get((device, event)) == when:
                return when
            heapq.heappop(self._heap)
        return NEVER

    def run(self, now: int) -> None:
        """Run every event due at or before ``now``, each with its own time, in order."""
        while self.deadline() <= now:
            when, _, event, device = heapq.heappop(self._heap)
            del self._due[(device, event)]
            self._handlers[device](event, when)
        self._announce()

    def _announce(self) -> None:
        self._on_deadline(self.deadline())

    def state(self) -> list[list[object]]:
        """Pending events as plain data, in canonical order: ``[[device, event, when], ...]``."""
        return [[d, e, w] for (d, e), w in sorted(self._due.items())]

    def load(self, state: list[list[object]]) -> None:
        """Replace all pending events by what `state` returned."""
        self._due = {(str(d), str(e)): int(str(w)) for d, e, w in state}
        self._heap = [(w, self._rank[d], e, d) for (d, e), w in self._due.items()]
        heapq.heapify(self._heap)
        self._announce()
