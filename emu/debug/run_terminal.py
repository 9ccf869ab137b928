"""`luemu run` on a terminal: the line of progress, and the machine's console, typed into or from a file."""

from __future__ import annotations

import itertools
import json
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from emu.debug.run_trace import Lines
from emu.debug.update import Update
from emu.errors import ImageError
from emu.files import read_file
from emu.machine import Machine, Stop, StopKind

_INTERACTIVE_SLICE = 5_000_000
"""ticks"""


class Progress:
    """One line on a terminal that says where the run is; nothing in a pipe."""

    def __init__(self, update: Update, on: bool) -> None:
        self.update = update
        self.on = on
        self.next = 0.0
        self.shown = False

    def __call__(self, machine: Machine) -> None:
        """Show where the run is, ten times a second."""
        now = time.monotonic()
        if not self.on or now < self.next:
            return
        self.next = now + 0.1
        observer = self.update.observer
        phase = f"{observer.phase}, kernel {observer.generation}" if observer else "running"
        print(
            f"\r\033[K{machine.instructions / 1e6:,.0f} M instructions  {phase}",
            end="",
            file=sys.stderr,
            flush=True,
        )
        self.shown = True

    def clear(self) -> None:
        """Leave the line empty."""
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self.shown = False


@contextmanager
def _raw_terminal() -> Iterator[bool]:
    if not sys.stdin.isatty():
        yield False
        return
    import termios  # where there is none (no Unix), images can be inspected all the same
    import tty

    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def interact(update: Update, record: Path | None) -> None:
    """Let the terminal talk to the console until the machine stops. Ctrl-] leaves."""
    m = update.machine
    log = Lines(record) if record is not None else None
    print("console of the machine; Ctrl-] leaves\r", file=sys.stderr)
    typed = b""  # while nobody reads
    with _raw_terminal() as terminal:
        while True:
            skipped = m.ticks - m.instructions
            stop = update.advance(m.ticks + _INTERACTIVE_SLICE)
            # A guest that sleeps without any timer wakes when something is typed.
            asleep = stop.kind is StopKind.DEADLOCK and m.registers()["rflags"] & 0x200
            if stop.kind is not StopKind.UNTIL and not asleep:
                update.ended = stop
                break
            idle = 3600.0 if asleep else (m.ticks - m.instructions - skipped) / 1e9
            reads = _somebody_reads(update)
            if not reads and not terminal:
                continue  # what is typed would be lost; but a terminal can be left, the more so if it hangs
            if not (reads and typed):
                if not select.select([sys.stdin], [], [], idle if reads else 0)[0]:
                    continue
                data = os.read(sys.stdin.fileno(), 256)
                if not data:  # the end of a file or pipe: the machine goes on alone
                    break
                typed += data
            if b"\x1d" in typed:
                typed, update.ended = b"", _left(stop)
            elif not reads:
                continue
            if log is not None:
                log.write([m.ticks, typed.hex()])
            if not typed:
                break
            m.send(typed)
            typed = b""
    if log is not None:
        log.close()


def _somebody_reads(update: Update) -> bool:
    """Whether the shell runs; of a first program of somebody else's nobody knows."""
    programs = update.transcript.programs
    return not update.options.driven or any(p.when == "interactive" and not p.ended for p in programs)


def _left(stop: Stop) -> Stop:
    return replace(stop, kind=StopKind.REQUEST, message="the console was left with Ctrl-]")


def replay(update: Update, path: Path) -> None:
    """Type what was recorded, at the same ticks. Raises ImageError."""
    try:
        lines = [json.loads(line) for line in read_file(path).splitlines()]
        inputs = [(int(t), bytes.fromhex(d)) for t, d in lines]
    except (ValueError, TypeError, OverflowError, RecursionError) as e:
        raise ImageError(f"is no recorded input: {e}", str(path)) from None
    if any(one[0] > two[0] for one, two in itertools.pairwise([(0, b""), *inputs])):
        raise ImageError("is no recorded input: its ticks go backwards", str(path))
    for tick, data in inputs:
        stop = update.advance(tick)
        if stop.kind is not StopKind.UNTIL:
            update.ended = stop
            return
        if not data:
            update.ended = _left(stop)
            return
        update.machine.send(data)


__all__ = ["Progress", "interact", "replay"]
