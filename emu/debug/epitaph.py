"""The epitaph of one of the project's kernels: what it left at its symbol `epitaph` when it panicked.

Layout: struct epitaph in kernels/include/panic.h, taken from the debug information of the release.
"""

from __future__ import annotations

from typing import Any

from emu.debug import guest
from emu.debug.guest import UnknownLayout
from emu.debug.release import Kernel
from emu.debug.view import View
from emu.machine import Machine

MAGIC = 0x4850415449504521
_ROWS = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")


def read(machine: Machine, kernel: Kernel) -> dict[str, Any] | None:
    """Reason, phase, registers, backtrace and the code around; None if the kernel has not panicked."""
    view = View(machine, kernel)
    try:
        at = view.symbol("epitaph")
        layout, regs = view.struct("epitaph"), view.struct("pt_regs")
        if view.member(at, "epitaph", "magic") != MAGIC:
            return None
        base = at + layout.offset("regs")
        registers = {name: view.number(base + regs.offset(name)) for name in regs.members}
        registers |= {name: view.member(at, "epitaph", name) for name in _CONTROL}
        trace = layout["backtrace"]
        frames = [
            view.number(at + trace.offset + 8 * i)
            for i in range(min(view.member(at, "epitaph", "frames"), trace.count))
        ]
        texts = {
            name: view.read(at + layout.offset(name), layout[name].size).partition(b"\0")[0].decode("latin-1")
            for name in ("reason", "phase")
        }
        trapped = bool(view.member(at, "epitaph", "has_trap"))
    except UnknownLayout:
        return None
    rip = registers["rip"]
    return {
        **texts,
        "release": kernel.release,
        "vector": registers.pop("vector") if trapped else None,
        "error_code": registers.pop("error_code") if trapped else None,
        # without a trap it is where panic() was to return to
        "rip": _place(rip, kernel, called=not trapped),
        "registers": {k: v for k, v in registers.items() if k not in ("vector", "error_code")},
        # what a frame has is the address behind the call
        "backtrace": [_place(address, kernel, called=True) for address in frames],
        "disassembly": guest.disassemble(machine, rip, kernel.symbols),
    }


def _place(address: int, kernel: Kernel, *, called: bool) -> dict[str, Any]:
    symbols = kernel.symbols
    at = address - 1 if called else address
    return {
        "address": address,
        "symbol": symbols.describe(address) if symbols is not None else "",
        "line": symbols.line(at) if symbols is not None else "",
    }


def text(found: dict[str, Any]) -> str:
    """For people."""

    def place(p: dict[str, Any]) -> str:
        return f"{p['address']:#x} {p['symbol']}" + (f" ({p['line']})" if p["line"] else "")

    out = [f"panic of {found['release']} (phase: {found['phase']}): {found['reason']}"]
    trap = (
        f", vector {found['vector']}, error {found['error_code']:#x}" if found["vector"] is not None else ""
    )
    out.append(f"rip {place(found['rip'])}{trap}")
    r = found["registers"]
    for row in _ROWS:
        out.append("  ".join(f"{name:<3} {r[name]:016x}" for name in row))
    out.append("  ".join(f"{name} {r[name]:x}" for name in (*_CONTROL, "rflags", "cs", "ss")))
    out += found["disassembly"]
    out += ["called from:"] if found["backtrace"] else []
    out += [f"  {place(p)}" for p in found["backtrace"]]
    return "\n".join(out)


__all__ = ["MAGIC", "read", "text"]
