"""Watching an unmodified Linux from the entries of its functions: probes and results (`Watch`), and what each
part of the rows needs (`Part`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

from emu.debug import entries
from emu.debug.guest import UnknownLayout
from emu.debug.linux import Linux
from emu.debug.linux_state import KernelSeen, State
from emu.debug.symbols import Symbols
from emu.errors import AddressError
from emu.machine import Machine
from kho.check import Report, Violation

VIOLATIONS_PER_ID_MAX = 50
NOT_SEEN = "the run did not get there, or not through a function that the symbols name"
SENDER, RECEIVER = "sender", "receiver"
"""Sides of a kernel: what it does as the one that hands over, and as the one that was handed something."""

Registers = dict[str, int]


class Watch:
    """Probes and results. ``symbols`` of generation n is ``symbols[min(n, last)]``; a kernel without is not
    watched. ``observed``: rows, and why they are not checked where the occasion did not come."""

    def __init__(
        self, machine: Machine, symbols: list[Symbols | None], observed: dict[str, str]
    ) -> None:
        self.machine = machine
        self.symbols = symbols
        self.observed = observed
        self.state = State(KernelSeen(0))
        self.calls: dict[str, list[Callable[[Registers], None]]] = {}
        """by function: what to call at each entry"""
        self._installed: list[tuple[int, Callable[[Machine, int], bool | None]]] = []
        self._functions: set[int] = set()
        self._more: set[int] = set()
        """other addresses that are watched"""
        self._of: Symbols | None = None
        self._view: Linux | None = None
        """good until the machine runs on"""
        self._registers: Registers | None = None

    # ---- probes --------------------------------------------------------------------------------

    def symbols_of(self, generation: int) -> Symbols | None:
        """Those of a kernel, if they are known."""
        return self.symbols[min(generation, len(self.symbols) - 1)] if self.symbols else None

    @property
    def running(self) -> Symbols | None:
        """Those of the kernel that runs."""
        return self.symbols_of(self.state.kernel.generation)

    def install(self) -> None:
        """Watch the functions of the kernel that runs now."""
        symbols = self.running
        keep = set() if symbols is not self._of else self._functions
        for address in {address for address, _ in self._installed} - keep:
            self.remove(address)
        self._of, self._more = symbols, set()
        there = {address for address, _ in self._installed}
        self._functions = set()
        for name in self.calls if symbols is not None else ():
            at = symbols.address(name) if symbols is not None else None
            if at is not None:
                self._functions.add(at)
                if at not in there:
                    self._add(at, self._handler(name))

    def watch(self, address: int, call: Callable[[Registers], None]) -> None:
        """Call whenever the kernel that runs gets to this address as well."""

        def reached(machine: Machine, address: int) -> None:
            call(machine.cpus[0].registers())

        if address not in self._more:
            self._more.add(address)
            self._add(address, reached)

    def _add(self, address: int, handler: Callable[[Machine, int], bool | None]) -> None:
        self.machine.probe(address, handler)
        self._installed.append((address, handler))

    def remove(self, address: int) -> None:
        """Watch an address no longer."""
        for item in [i for i in self._installed if i[0] == address]:
            self.machine.unprobe(*item)
            self._installed.remove(item)

    def _handler(self, name: str) -> Callable[[Machine, int], bool | None]:
        def entered(machine: Machine, address: int) -> None:
            self.entered(name, machine.cpus[0].registers())

        return entered

    def entered(self, function: str, registers: Registers) -> None:
        """A function of the kernel is about to begin with these registers."""
        self.look_anew(registers)
        for method in self.calls[function]:
            method(registers)

    # ---- the kernel ----------------------------------------------------------------------------

    def look_anew(self, registers: Registers | None = None) -> None:
        """The machine has run on."""
        self._view, self._registers = None, registers

    @property
    def linux(self) -> Linux:
        """The structures of the kernel that runs, now. Raises UnknownLayout."""
        if self._view is None:
            symbols = self.running
            if symbols is None:
                raise UnknownLayout("the kernel's symbols are not known")
            self._view = Linux(self.machine, symbols, self._registers)
        return self._view

    # ---- results -------------------------------------------------------------------------------

    @contextmanager
    def checking(self, id: str, side: str) -> Iterator[None]:
        """An invariant is being checked; it is not where something turns out to be unknown."""
        key = (self.state.kernel.generation, side)
        try:
            yield
        except (UnknownLayout, AddressError) as e:
            self.state.unknown.setdefault(key, {}).setdefault(id, str(e))
        else:
            self.state.checked.setdefault(key, set()).add(id)

    def discard(self, id: str, side: str) -> None:
        """It was no check after all."""
        self.state.checked.get((self.state.kernel.generation, side), set()).discard(id)

    def violate(self, id: str, side: str, when: str, message: str, phys: int | None) -> None:
        """A row is broken."""
        kernel = self.state.kernel.generation
        same = sum(1 for k, s, v in self.state.violations if (k, s, v.id) == (kernel, side, id))
        if same < VIOLATIONS_PER_ID_MAX:
            self.state.violations.append((kernel, side, Violation(id, when, message, phys)))

    def report(self, generation: int) -> Report:
        """What was found of the update from kernel ``generation`` to the next."""
        s = self.state
        keys = {(generation, SENDER), (generation + 1, RECEIVER)}
        if generation + 1 >= s.jumps:  # no later update: what the last kernel prepared belongs to this one
            keys.add((generation + 1, SENDER))
        if not generation:
            keys.add((0, RECEIVER))
        report = Report("run")
        report.violations = [v for k, side, v in s.violations if (k, side) in keys]
        unknown: dict[str, str] = {}
        checked: set[str] = set()
        for key in sorted(keys):
            checked |= s.checked.get(key, set())
            unknown = s.unknown.get(key, {}) | unknown
        blind = s.blind.get(generation + 1, "")
        if not all(self.symbols_of(n) for n in (generation, generation + 1)):
            blind = blind or "the kernel's symbols are not known"
        for id, reason in self.observed.items():
            if id in unknown:
                report.not_checked[id] = unknown[id]
            elif id in checked:
                report.checked.append(id)
            else:
                report.not_checked[id] = blind or reason or NOT_SEEN
        return report


class Part:
    """Some of the rows: methods that are called when functions are entered (`entries.at`), and at moments."""

    SIDE: ClassVar[str]
    WHEN: ClassVar[str]
    """Of what is broken, where it is not said."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.machine = watch.machine
        for function, methods in entries.table(self).items():
            watch.calls.setdefault(function, []).extend(methods)

    @property
    def kernel(self) -> KernelSeen:
        """What was seen of the kernel that runs."""
        return self.watch.state.kernel

    @property
    def linux(self) -> Linux:
        """Its structures. Raises UnknownLayout."""
        return self.watch.linux

    def checking(self, id: str) -> AbstractContextManager[None]:
        """A row is being checked."""
        return self.watch.checking(id, self.SIDE)

    def broken(self, id: str, message: str, phys: int | None, when: str = "") -> None:
        """A row is broken."""
        self.watch.violate(id, self.SIDE, when or self.WHEN, message, phys)


__all__ = ["NOT_SEEN", "RECEIVER", "SENDER", "Part", "Registers", "Watch"]
