"""Which thread runs on a machine: of the project's kernels and of Linux 7.2, without changing the run.

A thread is known by the address of its `struct thread` or `struct task_struct`. Both kinds of kernel keep
that of the running one in memory of the processor, which the GS base leads to while the kernel runs, and
KERNEL_GS_BASE at the moment it is left for user mode.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.debug import guest
from emu.debug.release import Kernel
from emu.errors import EmuError
from emu.machine import Machine

_KERNEL_SPACE = 0xFFFF_8000_0000_0000
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Threads:
    """How the running thread is found in one kernel."""

    offset: int
    """of the pointer to it, from the GS base"""
    switch: int
    """address of the function that goes from one thread to another"""
    own: bool

    @classmethod
    def of(cls, kernel: Kernel) -> Threads | None:
        """None where the kernel's symbols or debug information do not tell."""
        symbols = kernel.symbols
        if symbols is None:
            return None
        if kernel.own:
            switch = symbols.address("switch_stacks")
            try:
                offset: int | None = kernel.layouts.offset("percpu", "current_thread")
            except EmuError:
                offset = None
        else:
            switch, offset = symbols.address("__switch_to_asm"), symbols.address("current_task")
        return None if switch is None or offset is None else cls(offset, switch, kernel.own)

    def current(self, machine: Machine, registers: dict[str, int]) -> int | None:
        """The thread that runs in the kernel, or is about to leave it for user mode."""
        for base in (registers["gs.base"], registers["kernel_gs_base"]):
            if base >= _KERNEL_SPACE:
                try:
                    return guest.u64(machine, base + self.offset & _WORD)
                except guest.NotMapped:
                    return None
        return None

    def next(self, machine: Machine, registers: dict[str, int]) -> int | None:
        """At the entry of the function that switches: the thread that is switched to."""
        return self.current(machine, registers) if self.own else registers["rsi"]


__all__ = ["Threads"]
