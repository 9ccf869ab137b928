"""Kernels that die to order (`crash=KIND`): epitaph in memory, text on the console, the same on QEMU."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from emu.machine import StopKind
from tests.guest.running import RELEASES, Run, elf, on_luemu, on_qemu, symbols

MAGIC = 0x4850415449504521
FRAMES_MAX = 24
REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "vector", "error_code", "rip", "cs", "rflags", "rsp", "ss",
)  # fmt: skip
FORM = struct.Struct(f"<QQ{len(REGISTERS)}Q5QII{FRAMES_MAX}Q32s128s")

REGISTER_LINE = re.compile(r"  (rax|rsi|r8 |r12|cs|cr0) ")
"""Lines of the console with the processor's registers: stacks and tables may lie elsewhere on QEMU."""


@dataclass(frozen=True)
class Epitaph:
    regs: dict[str, int]
    cr2: int
    cr0: int
    efer: int
    has_trap: bool
    backtrace: list[int]
    phase: str
    reason: str


def epitaph(run: Run, release: str) -> Epitaph:
    """What the kernel left at its symbol; the layout is written here a second time, from panic.h."""
    at = symbols(release).address("epitaph")
    assert at is not None, "the kernel has no symbol 'epitaph'"
    magic, size, *rest = FORM.unpack(run.read(at, FORM.size))
    assert magic == MAGIC, f"no epitaph was written; the console ends with:\n{run.text[-1500:]}"
    assert size == FORM.size, "struct epitaph has another size than this test"
    regs = dict(zip(REGISTERS, rest, strict=False))
    cr0, cr2, _cr3, _cr4, efer, has_trap, frames, *rest = rest[len(REGISTERS) :]
    assert 0 < frames <= FRAMES_MAX
    phase, reason = (text.split(b"\0")[0].decode("ascii") for text in rest[FRAMES_MAX:])
    return Epitaph(regs, cr2, cr0, efer, bool(has_trap), rest[:frames], phase, reason)


CRASHES = {
    # kind: reason (a pattern), vector or None for a panic(), error code
    "divide": ("divide error", 0, 0),
    "null": ("null pointer: read of 0x8", 14, 0),
    "null-call": ("null pointer: execution of 0x0", 14, 0x10),
    "gp": ("general protection fault", 13, 0),
    "ud": ("invalid opcode", 6, 0),
    "breakpoint": ("breakpoint", 3, 0),
    "df": ("double fault: the stack pointer 0xffffffff40000000 is not on the thread's stack", 8, 0),
    "stack": (r"stack of thread \d+ \(init\) overflowed", None, 0),
    "panic": ("crash=panic on the command line", None, 0),
    "bug": (r"BUG at kernels/kernel/crash\.c:\d+: constant == 1", None, 0),
    "nx": ("page fault: execution of 0x{code_as_data:x}, which is data", 14, 0x11),
    "rodata": ("page fault: write to 0x{constant:x}, which is read-only", 14, 3),
    "text": ("page fault: write to 0x{crash_rodata:x}, which is read-only", 14, 3),
    "atomic": (r"thread \d+ \(init\) sleeps while it must not be preempted", None, 0),
    "mutex": ("mutex is locked twice by its owner", None, 0),
    "nmi": ("NMI", 2, 0),
}
OUTER = ("crash_if_asked", "do_initcalls", "kernel_init", "thread_first_run", "thread_start")
"""The way to every crash, innermost first; the compiler may have merged some into their callers."""


def local_symbols(release: str) -> dict[str, int]:
    """Static variables of crash.c: other files have symbols of these names too."""
    found: dict[str, int] = {}
    file = ""
    with elf(release).open("rb") as f:
        for section in ELFFile(f).iter_sections():
            if isinstance(section, SymbolTableSection):
                for symbol in section.iter_symbols():
                    if symbol["st_info"]["type"] == "STT_FILE":
                        file = symbol.name
                    elif file == "crash.c" and symbol.name:
                        found[symbol.name] = int(symbol["st_value"])
    return found


def callers(release: str, addresses: list[int]) -> list[str]:
    """Functions that these return addresses are in."""
    return [symbols(release).describe(a - 1).split("+")[0] for a in addresses]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("kind", CRASHES)
def test_the_epitaph_says_what_happened(kind: str, release: str) -> None:
    reason, vector, error_code = CRASHES[kind]
    run = on_luemu(release, f"crash={kind}")
    assert run.stop.kind == StopKind.DEADLOCK, f"the kernel did not halt: {run.stop}\n{run.text[-1000:]}"
    e = epitaph(run, release)
    if "{" in reason:
        reason = reason.format(**local_symbols(release))
    assert re.fullmatch(reason, e.reason)
    assert e.has_trap == (vector is not None)
    if vector is not None:
        assert (e.regs["vector"], e.regs["error_code"]) == (vector, error_code)
        assert e.regs["cs"] == 0x08
    assert e.phase == "initcalls"
    assert e.cr0 & 1 << 16, "CR0.WP is off"
    assert e.efer & 1 << 11, "EFER.NXE is off"

    # the address of what faulted; behind what panicked, trapped or was interrupted
    where = callers(release, [e.regs["rip"] + (e.has_trap and kind not in ("breakpoint", "nmi"))])
    way = where + callers(release, e.backtrace)
    assert f"crash_{kind.replace('-', '_')}" in way, f"the trace does not name the culprit: {way}"
    assert way[-2:] == list(OUTER[-2:]), f"the trace does not go back to the thread's start: {way}"
    inner = [name for name in way if name in OUTER]
    assert inner == [name for name in OUTER if name in inner], f"callers are out of order: {way}"

    console = run.text[run.text.index(f"\ncrash={kind}\n") :]
    assert f"Kernel panic: {e.reason}\n" in console
    assert console.split("Call trace:\n")[1] == (
        "".join(f"  {a:#x}\n" for a in e.backtrace) + "System halted\n"
    )


def test_registers_are_those_of_the_fault() -> None:
    """`crash=divide` has 1 in eax, 0 in ecx and edx; `crash=df` its stack pointer in rsp."""
    e = epitaph(on_luemu("old", "crash=divide"), "old")
    assert (e.regs["rax"], e.regs["rcx"], e.regs["rdx"]) == (1, 0, 0)
    assert e.regs["rflags"] & 1 << 9, "interrupts were off in a thread"
    e = epitaph(on_luemu("old", "crash=df"), "old")
    assert e.regs["rsp"] == 0xFFFFFFFF40000000
    e = epitaph(on_luemu("old", "crash=null"), "old")
    assert e.cr2 == 8


def test_a_panic_inside_a_panic() -> None:
    """The epitaph of the first was not finished: the second one's text, as it is in the source, stands in
    for it, and nothing else is tried."""
    run = on_luemu("new", "crash=twice")
    assert run.stop.kind == StopKind.DEADLOCK
    said = "page fault: %s 0x%lx, where nothing is mapped"
    assert run.text.endswith(f"crash=twice\n\npanic inside a panic: {said}\n"), run.text[-300:]
    e = epitaph(run, "new")
    assert e.reason == said


def test_restart() -> None:
    """By the reset register of ACPI. (QEMU ends with status 0 too, which `on_qemu` looks at.)"""
    run = on_luemu("old", "crash=restart")
    assert run.stop.kind == StopKind.RESET
    assert on_qemu("old", "crash=restart").endswith("crash=restart\n")


def test_a_kernel_that_lives_has_no_epitaph() -> None:
    run = on_luemu("old")
    at = symbols("old").address("epitaph")
    assert at is not None
    assert run.read(at, FORM.size) == bytes(FORM.size)
    assert "Call trace" not in run.text


@pytest.mark.parametrize("value", ["", "nothing", "divid", "divide ", "DIVIDE"])
def test_an_unknown_kind_does_not_crash(value: str) -> None:
    run = on_luemu("old", f'"crash={value}"')
    assert "Kernel panic" not in run.text
    assert "crash" in run.text.replace("Command line: ", "", 1), "a malformed parameter is not reported"


def test_nmi_on_qemu() -> None:
    """It comes some instructions later there: only what it is compares."""
    assert "Kernel panic: NMI\n" in on_qemu("old", "crash=nmi")


@pytest.mark.parametrize("kind", [kind for kind in CRASHES if kind != "nmi"])
def test_qemu_prints_the_same(kind: str) -> None:
    """Releases alternate: both are compared, and every kind."""
    release = RELEASES[list(CRASHES).index(kind) % 2]
    same = []
    for text in (on_luemu(release, f"crash={kind}").text, on_qemu(release, f"crash={kind}")):
        lines = text[text.index(f"\ncrash={kind}\n") :].splitlines()
        registers = [line for line in lines if REGISTER_LINE.match(line)]
        assert len(registers) == 6, f"registers are not printed:\n{text}"
        same.append([line for line in lines if line not in registers])
    assert same[0] == same[1], f"{release} with crash={kind} prints something else on QEMU"
