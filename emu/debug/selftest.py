"""`luemu selftest`: the machine's own bare-metal guest, which exercises every CPU and device feature."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import kernels
from emu.boot import Boot
from emu.debug import guest
from emu.debug.output import Paint, UsageError, clean, fail, parse_number, print_json
from emu.debug.symbols import Symbols
from emu.errors import ConfigError, ImageError
from emu.files import read_file
from emu.machine import Machine, StopKind

EXAMPLE = """\
example: only the tests of the CPU and of paging, with 128 MiB
  luemu selftest --memory 128M only=cpu,mmu
"""
MAX_INSTRUCTIONS = 2_000_000_000
MEMORY_MIN, MEMORY_MAX = 16 << 20, 1 << 30
"""The guest maps the first GiB; the second belongs to its ring 3."""
_EPITAPH_MAGIC = int.from_bytes(b"!EPITAPH", "little")
_FRAME = (
    *("r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx", "rbx", "rax"),
    *("vector", "error", "rip", "cs", "rflags", "rsp", "ss"),
)
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")
_SUMMARY = re.compile(rb"^selftest: (\d+) tests?, (\d+) failed\r?$", re.MULTILINE)


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    p = subparsers.add_parser(
        "selftest",
        help="run the machine's own bare-metal test guest",
        description="Run the bare-metal guest that exercises every CPU and device feature.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "words", nargs="*", metavar="WORD", help="command line of the guest: only=GROUP, skip=GROUP, ..."
    )
    p.add_argument("--elf", metavar="FILE", help="another guest (an ELF file)")
    p.add_argument("--memory", default="256M", metavar="SIZE", help="RAM of the machine (default 256M)")
    p.add_argument(
        "--max-instructions", default=str(MAX_INSTRUCTIONS), metavar="N", help="give up after this many"
    )
    p.add_argument("-q", "--quiet", action="store_true", help="only the summary")
    p.add_argument("--json", action="store_true", help="one JSON document on stdout")
    p.set_defaults(func=run)


def _unexpected_trap(m: Machine, symbols: Symbols) -> str:
    """What the guest left at its symbol `epitaph` (`struct epitaph` in kernels/selftest/trap.c), if anything:
    where it was, by symbol, source line and disassembly."""
    at = symbols.address("epitaph")
    if at is None:
        return ""
    try:
        data = guest.read(m, at, 8 * (2 + len(_FRAME) + len(_CONTROL)))
    except guest.NotMapped:
        return ""
    magic, _, *words = (int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8))
    if magic != _EPITAPH_MAGIC:
        return ""
    r = dict(zip((*_FRAME, *_CONTROL), words, strict=True))
    where = guest.named(r["rip"], symbols)
    first = f"unexpected trap: vector {r['vector']}, error {r['error']:#x}, cr2 {r['cr2']:#x}, at {where}"
    return "\n".join([first, *guest.disassemble(m, r["rip"], symbols)])


def run(args: argparse.Namespace) -> int:
    """Run the subcommand: 0 if no test failed, 1 otherwise."""
    try:
        path = Path(args.elf) if args.elf else kernels.binary("selftest.elf")
        image = read_file(path)
        limit = parse_number(args.max_instructions, "--max-instructions")
        if args.elf is None and not MEMORY_MIN <= parse_number(args.memory, "--memory") <= MEMORY_MAX:
            raise UsageError("the self-test guest runs in 16 MiB to 1 GiB", "--memory")
        with Machine(parse_number(args.memory, "--memory")) as m:
            m.boot(Boot(image, " ".join(args.words), where=str(path)))
            stop = m.run(max_instructions=limit)
            console = m.console
            symbols = Symbols.read(path)
            crashed = stop.kind is not StopKind.POWER_OFF
            epitaph = guest.epitaph(m, symbols) if crashed else _unexpected_trap(m, symbols)
            state_hash = m.state_hash()
    except (UsageError, ConfigError, ImageError) as e:
        return fail(e, args.json)
    summary = _SUMMARY.search(console)
    none = summary is not None and summary[1] == b"0"
    ok = not crashed and not none and summary is not None and summary[2] == b"0"
    if args.json:
        print_json(
            {
                "ok": ok,
                "tests": int(summary[1]) if summary else None,
                "failed": int(summary[2]) if summary else None,
                "end": {"kind": stop.kind.value, "message": stop.message, "rip": stop.rip},
                "instructions": stop.instructions,
                "state_hash": state_hash,
                "epitaph": epitaph,
                "output": console.decode("latin-1"),
            }
        )
        return 0 if ok else 1
    lines = [clean(line) for line in console.decode("latin-1").replace("\r", "").splitlines()]
    for line in lines[-1:] if args.quiet else lines:
        print(line)
    print(f"{stop.instructions:,} instructions, state {state_hash}")
    if crashed:
        print(f"the guest did not end by itself: {stop}")
    elif not ok and not epitaph:
        why = "the guest did not come to the end of its tests" if summary is None else "tests failed"
        print("no test ran: there is none of that name" if none else why)
    if epitaph:
        print(epitaph)
    paint = Paint(sys.stdout)
    print(paint("green", "ok") if ok else paint("red", "not ok"))
    return 0 if ok else 1
