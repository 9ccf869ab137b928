"""`luemu run`: one or more live updates from boot to verified finish, for people and for machines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from emu import pcap
from emu.debug.faults import FAULTS
from emu.debug.options import MAX_INSTRUCTIONS
from emu.debug.output import UsageError, fail, interrupted, print_json
from emu.debug.run_options import options
from emu.debug.run_report import show
from emu.debug.run_terminal import Progress, interact, replay
from emu.debug.run_trace import Trace
from emu.debug.update import Update
from emu.debug.workloads import WORKLOADS
from emu.devices.platform import EXTRAS
from emu.errors import ConfigError, ImageError

EXAMPLE = """\
examples
  luemu run                             the project's own kernels: release old updates to release new
                                        under a cache service that is written to
  luemu run --updates 10 --preserve 64M
                                        ten updates, old and new by turns, with a cache of 64 MiB
  luemu run --workload kho              no programs: the test of KHO that is built into the kernels
  luemu run --old new --new old --new old
                                        two updates, by names: new to old, old to old
  luemu run --old bzImage --file ./lu:/bin/lu \\
            --before 'lu s1 S:one F:0x1:4K:all' --after 'lu s2 S:one F:0x1:4K:all'
                                        a Linux that preserves a memfd in a session
  luemu run --device vtd --device e1000 --traffic rate=50k,size=64-9000,start=P9 --pcap-out sent.pcap
                                        frames arrive at a network card from the freeze on

--old and --new take the name of a release (old, new), a bzImage or an ELF file, of both kinds of kernel.
Symbols are read from the ELF file, System.map or vmlinux beside the kernel. --before and --after may be given
several times; each CMD is split like shell words and run without a shell, as root, with PATH=/bin:/sbin. WHEN
is a phase (P9), an instruction number, or a moment: J (the old kernel jumps), K (the new one adopts memory),
F (it has freed the rest). SPEC is of rate=N or interval=TICKS, burst=N, size=BYTES or LOW-HIGH, count=N,
seed=N, stream=N, nic=NAME, start=TICK, a phase, or ready (the card's receiver is turned on; the default).
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    p = subparsers.add_parser(
        "run",
        help="perform a live update and verify it",
        description="Boot the old kernel, update to the new one, verify what crossed. Without arguments: the "
        "project's own kernels.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    a = p.add_argument
    a("--old", metavar="KERNEL", help="release, bzImage or ELF of the kernel that is replaced")
    a(
        "--new",
        action="append",
        default=[],
        metavar="KERNEL",
        help="the kernel that replaces it (default: the same); once for each update, or old and new by turns",
    )
    a("--symbols", metavar="FILE", help="System.map or ELF with the symbols of both kernels")
    a("--old-symbols", metavar="FILE", help="the same for the old kernel only")
    a("--new-symbols", metavar="FILE", help="the same for the new kernel only")
    a("--memory", metavar="SIZE", help="RAM of the machine (default 512M, or what the workload needs)")
    a("--cmdline", default="", metavar="TEXT", help="added to the kernels' command line")
    a("--workload", metavar="NAME", help="what runs in the kernels (help: list them; default cache)")
    a("--preserve", metavar="SIZE", help="size of the cache, or of the test memory of kho")
    a("--preserve-order", metavar="N", help="all of it in folios of 2^N pages (test_kho.order=)")
    a("--scratch", metavar="L,G,N", help="sizes of the scratch areas: low, global, node (kho_scratch=)")
    a("--rate", metavar="N", help="frames a second that workload net receives (default 20000)")
    a("--frame-size", metavar="BYTES", help="their size without check sequence, 60 to 9216 (default 1500)")
    a("--ring", metavar="N", help="descriptors of the receiver's ring (default 4096)")
    a("--irq", action="store_true", help="the receiver is driven by interrupts, not by polling")
    a("--fault", metavar="NAME", help="workload net with a mistake of the kernels' (help: list them)")
    a("--before", action="append", default=[], metavar="CMD", help="run this before each update")
    a("--after", action="append", default=[], metavar="CMD", help="run this after each update")
    a("--file", action="append", default=[], metavar="HOST:GUEST", help="put a host file into the machine")
    a("--no-libs", action="store_true", help="do not add the libraries that programs need")
    a("--init", metavar="PROGRAM", help="the first program, instead of luemu's: it does all itself")
    a("--initramfs", metavar="FILE", help="a cpio archive: the whole file system, or what CMDs find in it")
    a("--incoming", metavar="IMAGE", help="begin with this recorded handover, in the new kernel")
    a(
        "--updates",
        metavar="N",
        help="how many updates in a row (default 1, or one for each --new; 0: none; 64 with programs)",
    )
    a("--device", action="append", default=[], metavar="NAME", help="add a device (help: list them)")
    a("--traffic", metavar="SPEC", help="send frames to the network card, and verify what it sends")
    a("--pcap-in", metavar="FILE", help="send it the frames of a recording, at their times")
    a("--pcap-out", metavar="FILE", help="record all that is sent and received, for Wireshark")
    a("--interactive", action="store_true", help="/bin/sh (see --file) on the console, on this terminal")
    a("--record-input", metavar="FILE", help="write what is typed, with its ticks")
    a("--replay-input", metavar="FILE", help="type what was recorded, at the same ticks")
    a("--save", action="append", default=[], metavar="WHEN=FILE", help="keep the machine at a moment")
    a("--dump", action="append", default=[], metavar="WHEN=FILE", help="keep its memory: raw, .zst or .elf")
    a("--trace", metavar="FILE", help="write what happens as JSON lines")
    a("--trace-dma", action="store_true", help="in the trace: each DMA request as well")
    a("--max-instructions", default=str(MAX_INSTRUCTIONS), metavar="N", help="give up after this many")
    a("--strict-memory", action="store_true", help="end the run at an access to nothing")
    a("--raw", action="store_true", help="observe nothing: no symbols, no phases, no verdict")
    a("-v", "--verbose", action="store_true", help="show the console and the programs' output")
    a("--json", action="store_true", help="one JSON document on stdout")
    p.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand: 0 if verified, 1 if not, 2 for bad usage or input."""
    if args.workload == "help":
        for name, what in WORKLOADS.items():
            print(f"{name:<8}{what}")
        return 0
    if args.fault == "help":
        for name, one in FAULTS.items():
            print(f"{name:<13}{one.what}")
        return 0
    if args.trace_dma and args.trace is None:
        return fail(UsageError("says where: --trace FILE", "--trace-dma"), args.json)
    if "help" in args.device:
        print("\n".join(EXTRAS))
        return 0
    try:
        o = options(args)
        update = Update(o)
    except (UsageError, ConfigError, ImageError) as e:
        return fail(e, args.json)
    progress = Progress(update, sys.stderr.isatty() and not args.verbose and not args.interactive)
    if args.verbose or args.interactive:
        out = sys.stderr.buffer if args.json else sys.stdout.buffer

        def console(value: int) -> None:
            out.write(bytes((value,)))
            if value == 10 or args.interactive:
                out.flush()

        update.on_console = console
    capture: pcap.Writer | None = None
    try:
        trace = Trace(Path(args.trace), update) if args.trace is not None else None
        if trace is not None:
            update.on_records = trace.records
        if args.pcap_out is not None:
            capture = pcap.Writer(Path(args.pcap_out))
            update.machine.traffic.taps.append(capture.frame)
        if args.replay_input:
            replay(update, Path(args.replay_input))
        elif args.interactive:
            interact(update, None if args.record_input is None else Path(args.record_input))
        result = update.run(progress)
        if trace is not None:
            if args.trace_dma:
                trace.dma()
            trace.end(result.stop)
    except (ConfigError, ImageError) as e:
        return fail(e, args.json)
    except KeyboardInterrupt:
        progress.clear()
        return interrupted(args.json)
    finally:
        progress.clear()
        update.machine.close()
        if capture is not None:
            capture.close()
    if args.json:
        print_json(result.plain())
    else:
        show(result, verbose=args.verbose)
    return 0 if result.ok else 1


__all__ = ["add_parser", "run"]
