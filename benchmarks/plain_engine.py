"""One mix of the self-test guest on the engine as it comes: `python -m benchmarks.plain_engine FILE`.

A process of its own, into which our core is never loaded. FILE is what `benchmarks.plain` saved: a machine
right before its mix begins. Prints the seconds between the guest's "start" and "end" lines.
"""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path
from typing import Any

import unicorn
from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_64, x86_const

EFER = 0xC0000080
SERIAL, LINE_STATUS, EMPTY = 0x3F8, 0x3FD, 0x60
GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)


def run(saved: dict[str, Any]) -> float:
    """Seconds between the two lines."""
    make: Any = vars(unicorn)["Uc"]  # the package says nothing of its types
    engine = make(UC_ARCH_X86, UC_MODE_64)
    engine.ctl_set_cpu_model(x86_const.UC_CPU_X86_EPYC)
    engine.mem_map(0, saved["memory"])
    for number, data in saved["pages"]:
        engine.mem_write(number * 4096, data)
    r = saved["registers"]

    def write(name: str, value: object) -> None:
        engine.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), value)

    write("GDTR", (0, r["gdtr.base"], r["gdtr.limit"], 0))
    write("CR4", r["cr4"])
    write("CR3", r["cr3"])
    write("MSR", (EFER, r["efer"]))
    write("CR0", r["cr0"])
    for name in GENERAL:
        write(name.upper(), r[name])
    write("EFLAGS", r["rflags"])
    line = bytearray()
    marks: list[float] = []

    def port_write(uc: Any, port: int, size: int, value: int, user: object) -> None:
        if port != SERIAL:
            return
        if value != 10:
            line.append(value & 0xFF)
            return
        if line.startswith(b"bench "):
            marks.append(time.perf_counter())
            if len(marks) == 2:
                uc.emu_stop()
        line.clear()

    def port_read(uc: Any, port: int, size: int, user: object) -> int:
        return EMPTY if port == LINE_STATUS else 0xFF

    engine.hook_add(UC_HOOK_INSN, port_write, None, 1, 0, x86_const.UC_X86_INS_OUT)
    engine.hook_add(UC_HOOK_INSN, port_read, None, 1, 0, x86_const.UC_X86_INS_IN)
    engine.emu_start(r["rip"], 1 << 62)
    return marks[1] - marks[0]


if __name__ == "__main__":
    print(run(pickle.loads(Path(sys.argv[1]).read_bytes())))
