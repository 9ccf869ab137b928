"""What parts of the rows on the project's kernels need: who judges (`Judge`), and where to look (`Part`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from emu.debug.own_structures import Structures
from emu.debug.view import View
from emu.machine import Machine

Registers = dict[str, int]
Arguments = tuple[int, ...]
Call = Callable[[Registers, Arguments], None]


class Judge(Protocol):
    """Who keeps the results, and watches the machine."""

    machine: Machine

    def view(self) -> View:
        """The kernel's structures, now."""

    def checking(self, id: str, sender: bool = False) -> AbstractContextManager[None]:
        """A row is being checked."""

    def unknown(self, id: str, reason: str, sender: bool = False) -> None:
        """A row can not be checked."""

    def violate(self, id: str, when: str, message: str, phys: int | None, sender: bool = False) -> None:
        """A row is broken."""

    def watch(self, address: int, call: Call) -> None:
        """Call when this address of the running kernel is reached."""


class Part:
    """Some of the rows of one kernel: methods that are called when functions are entered or events announced
    (`entries.at`), and at moments. ``SENDER``: rows of the kernel that hands over."""

    SENDER = False

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def structures(self) -> Structures:
        """LUO's, now."""
        return Structures(self.judge.view())

    def checking(self, id: str) -> AbstractContextManager[None]:
        """A row is being checked."""
        return self.judge.checking(id, self.SENDER)

    def broken(self, id: str, message: str, phys: int | None, when: str = "") -> None:
        """A row is broken; ``when`` it is no moment, it is in the run, or at J."""
        self.judge.violate(id, when or ("J" if self.SENDER else "run"), message, phys, self.SENDER)


def handle(s: Structures, args: int) -> int:
    """Of the file that a handler is called for, by its struct liveupdate_file_args."""
    return s.view.member(args, "liveupdate_file_args", "serialized_data")


__all__ = ["Arguments", "Call", "Judge", "Part", "Registers", "handle"]
