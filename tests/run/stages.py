"""Updates of the project's kernels for tests: run once to a stage, then continued many times from there.

Each continuation is a process of its own (fork), so that the machine and everything that watches it are as
they were at the stage, whatever the one before did to them.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emu.debug.options import Options
from emu.debug.release import Kernel
from emu.debug.update import Update
from emu.debug.view import View
from emu.machine import Machine, StopKind

MEMORY = 128 << 20
SMALL = "test_kho.max_mem=256K"
LIMIT = 2_000_000_000

Action = Callable[["Stage"], None]


def options(**changes: Any) -> Options:
    """A small update, old to new."""
    small = Options(old="old", new="new", memory=MEMORY, cmdline=SMALL, max_instructions=LIMIT)
    return replace(small, **changes)


@dataclass(frozen=True)
class Outcome:
    """What a continued run came to."""

    ok: bool
    reasons: list[str]
    violations: list[tuple[str, str, str, int | None]]
    """(id, moment, message, physical address)"""
    checked: list[str]
    not_checked: dict[str, str]
    document: dict[str, Any]

    @property
    def ids(self) -> set[str]:
        """Rows that are broken."""
        return {id for id, *_ in self.violations}


@dataclass
class Stage:
    """An update that has been stopped. Tests change its memory and go on."""

    update: Update

    @property
    def machine(self) -> Machine:
        return self.update.machine

    @property
    def kernel(self) -> Kernel:
        """The kernel that runs."""
        assert self.update.observer is not None
        return self.update.observer.kernel

    @property
    def view(self) -> View:
        """Its structures, now."""
        return View(self.machine, self.kernel)

    def at(self, event: str, action: Action, count: int = 1) -> None:
        """Do something at the ``count``-th time (0: each time) that the running kernel announces an event,
        or enters a function. What watches the run is told of the event first."""
        left = [count]

        def hit(m: Machine, address: int) -> None:
            left[0] -= 1
            if not left[0] or not count:
                action(self)

        for address in addresses(self.kernel, event):
            self.machine.probe(address, hit)

    def run_to(self, event: str) -> None:
        """Run until the kernel announces an event."""

        def hit(m: Machine, address: int) -> bool:
            return True

        found = addresses(self.kernel, event)
        for address in found:
            self.machine.probe(address, hit)
        stop = self.machine.run(max_instructions=LIMIT)
        assert stop.kind is StopKind.BREAKPOINT, f"{event} was not reached: {stop}"
        for address in found:
            self.machine.unprobe(address, hit)

    # ---- changing things behind the guest's back -------------------------------------------------

    def flip(self, phys: int, mask: int = 1) -> None:
        """Change bits of a byte."""
        self.poke(phys, bytes([int(self.machine.memory.read(phys, 1)[0]) ^ mask]))

    def poke(self, phys: int, data: bytes) -> None:
        """Change bytes, unseen by whoever watches the host's writes."""
        observers, self.machine.memory.observers = self.machine.memory.observers, []
        self.machine.memory.write(phys, data, by="test")
        self.machine.memory.observers = observers

    def write(self, address: int, data: bytes) -> None:
        """Change bytes at a virtual address, inside a page."""
        self.poke(self.view.phys(address), data)

    def set_member(self, address: int, struct: str, member: str, value: int) -> None:
        """Change a member of a structure."""
        found = self.view.struct(struct)[member]
        self.write(address + found.offset, value.to_bytes(found.size, "little"))

    def page(self, phys: int) -> int:
        """Address of a struct page."""
        return self.view.variable("vmemmap_base") + (phys >> 12) * self.view.struct("page").size

    def code(self, function: str, code: str) -> None:
        """Replace the beginning of a function."""
        self.write(self.view.symbol(function), bytes.fromhex(code))

    # ---- facts ---------------------------------------------------------------------------------

    @property
    def handover(self) -> Any:
        """What was handed over last, as it was at J."""
        handover = self.update.examined[-1].handover
        assert handover is not None
        return handover

    def folio(self, number: int = 0) -> int:
        """Address of a folio of kho_test."""
        assert self.handover.kho_test is not None
        return int(self.handover.kho_test.phys[number])

    def order(self, number: int = 0) -> int:
        """Its order."""
        assert self.handover.kho_test is not None
        return int(self.handover.kho_test.order[number])

    def free_page(self) -> int:
        """A page outside scratch, above the first MiB, that is not preserved and was never used."""
        preserved, scratch = self.handover.preserved, self.handover.scratch
        for phys in range(0x300000, MEMORY, 4096):
            inside = any(a.phys <= phys < a.end for a in scratch)
            page = np.array([phys], np.uint64)
            if (
                not inside
                and not preserved.touched(page)[0]
                and not self.machine.memory.read(phys, 4096).any()
            ):
                return phys
        raise AssertionError("every page is used")

    # ---- going on ------------------------------------------------------------------------------

    def go_on(self, action: Action | None = None) -> Outcome:
        """The rest of the run, after the action, in a process of its own."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(reader)
                if action is not None:
                    action(self)
                result = self.update.run()
                document: dict[str, Any] = {"result": result.plain(), "epitaph": result.epitaph}
            except BaseException:
                document = {"error": traceback.format_exc()}
            with os.fdopen(writer, "w") as pipe:
                json.dump(document, pipe)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        document = json.loads(said) if said else {"error": "the process ended without a word"}
        assert "error" not in document, document["error"]
        plain = document["result"]
        found = [(v["id"], v["moment"], v["message"], v["phys"]) for v in plain["violations"]]
        return Outcome(
            plain["ok"], plain["reasons"], found, plain.get("checked", []), plain.get("not_checked", {}),
            plain | {"epitaph": document["epitaph"]},
        )  # fmt: skip


def addresses(kernel: Kernel, event: str) -> list[int]:
    """Where a kernel announces an event ("kho:restore"), or begins a function."""
    if ":" in event:
        found = [probe.address for probe in kernel.probes.at(event)]
    else:
        at = kernel.symbols.address(event) if kernel.symbols is not None else None
        found = [] if at is None else [at]
    assert found, f"{kernel.name} has no {event}"
    return found


def stage(*events: str, **changes: Any) -> Stage:
    """An update that has been run to the last of these events, one after the other."""
    found = Stage(Update(options(**changes)))
    for event in events:
        found.run_to(event)
    return found
