"""What happens in a run as JSON lines: `luemu run --trace`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from emu.debug import dmacheck
from emu.debug.phases import Record
from emu.debug.update import Update
from emu.errors import ImageError
from emu.initproto import Transcript
from emu.machine import Stop


class Lines:
    """A file of JSON lines, each written at once: what was there survives whatever ends this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        with self._typed():
            self._file = path.open("w", buffering=1)

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            self.abandon()
            raise ImageError(f"cannot be written: {e.strerror}", str(self._path)) from None

    def write(self, value: object) -> None:
        """One more line. Raises ImageError."""
        with self._typed():
            if self._file is not None:
                self._file.write(json.dumps(value) + "\n")

    def close(self) -> None:
        """No more lines. Raises ImageError."""
        with self._typed():
            if self._file is not None:
                self._file.close()

    def abandon(self) -> None:
        """No more lines, and nothing more to complain about."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = None


class Trace:
    """Phases, programs, DMA, the end."""

    def __init__(self, path: Path, update: Update) -> None:
        self.file = Lines(path)
        self.update = update
        self.programs = 0
        self.ended: set[int] = set()
        if update.observer is not None:
            self.phase(update.observer.records[-1])  # the one that the run begins in
            update.on_phase = self.phase

    def write(self, event: str, **values: object) -> None:
        """One event, now. Raises ImageError."""
        m = self.update.machine
        line = {"event": event, "tick": m.ticks, "instruction": m.instructions, **values}
        self.file.write(line)

    def phase(self, record: Record) -> None:
        """A phase begins."""
        self.write("phase", id=record.id, name=record.name, generation=record.generation)

    def records(self, t: Transcript) -> None:
        """Programs that have begun or ended since the last time."""
        for i, p in enumerate(t.programs):
            if i >= self.programs:
                self.programs = i + 1
                self.write("program", argv=list(p.argv), when=p.when, generation=p.generation)
            if p.ended and i not in self.ended:
                self.ended.add(i)
                self.write("exit", argv=list(p.argv), status=p.status, signal=p.signal)

    def dma(self) -> None:
        """Each DMA request, at the end: their ticks say when they were."""
        watch = self.update.dma
        for event in watch.records() if watch is not None else ():
            self.file.write(dmacheck.plain(event))

    def end(self, stop: Stop) -> None:
        """The last line."""
        self.write("end", kind=stop.kind.value, message=stop.message)
        self.file.close()


__all__ = ["Lines", "Trace"]
