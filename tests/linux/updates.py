"""Updates of the reference Linux for tests: the small one that most use, and ways to tamper with it."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from emu.debug.options import Options
from emu.debug.update import Update
from emu.debug.verdict import Result
from emu.machine import Machine, Stop, StopKind
from kho.handover import Handover
from luo.state import Luo
from tests.linux.build import LinuxBuild

SPEC = "S:one F:0x1:4K:all"
"""One session with one page: what the recording c1-1x4k was made with."""
DIGEST = "176b13ffb8fa189c10cd24b5f0fc73152a3ed7da26dd9c04c3bc25bc2b813121"
SCRATCH = "kho_scratch=48M,0,0"
LIMIT = 6_000_000_000


def options(linux: LinuxBuild, **changes: Any) -> Options:
    """The small update, as the recordings were made: 128 MiB, one session with one page."""
    small = Options(
        old=linux.bzimage,
        new=linux.bzimage,
        memory=128 << 20,
        cmdline=SCRATCH,
        before=[f"lu s1 {SPEC}"],
        after=[f"lu s2 {SPEC}"],
        files=[(linux.lu, "/bin/lu")],
        max_instructions=LIMIT,
    )
    return replace(small, **changes)


@contextmanager
def update(linux: LinuxBuild, **changes: Any) -> Iterator[Update]:
    """The small update with these options changed, not run yet."""
    u = Update(options(linux, **changes))
    try:
        yield u
    finally:
        u.machine.close()
        gc.collect()  # handovers of earlier updates hold views of their memory, some in cycles


def run(linux: LinuxBuild, **changes: Any) -> Result:
    """The small update with these options changed."""
    with update(linux, **changes) as u:
        return u.run()


def run_sliced(u: Update, seed: int, at_most: int) -> Result:
    """Run an update in slices of random length, many of them short."""
    dice = random.Random(seed)
    stop: Stop | None = None
    while stop is None or stop.kind is StopKind.UNTIL:
        step = dice.randrange(1, dice.choice((3, 1000, at_most, at_most, at_most)))
        stop = u.machine.run(u.machine.ticks + step, max_instructions=LIMIT)
    u.ended = stop
    return u.run()


def symbol(u: Update, name: str) -> int:
    """Address of a function of the kernel."""
    symbols = u.symbols[0]
    address = symbols.address(name) if symbols else None
    assert address is not None, name
    return address


def at_entry(u: Update, function: str, generation: int, action: Callable[[Machine], None]) -> list[int]:
    """Do something at the first entry to a function in a generation. The list gets the instruction number."""
    done: list[int] = []

    def entered(m: Machine, address: int) -> None:
        if not done and u.observer is not None and u.observer.generation == generation:
            done.append(m.instructions)
            action(m)

    u.machine.probe(symbol(u, function), entered)
    return done


def flip(m: Machine, phys: int, mask: int = 1) -> None:
    """Change bits of a byte behind the guest's back."""
    m.memory.write(phys, bytes([int(m.memory.read(phys, 1)[0]) ^ mask]), "test")


def handover_at_jump(u: Update) -> tuple[Handover, Luo]:
    """The handover that was examined at J, as it is in memory now."""
    handover = Handover.read(u.machine.memory, u.examined[-1].fdt)
    luo = Luo.read(handover)
    assert luo is not None
    return handover, luo
