"""`luemu run`: one or more live updates from boot to verified finish, for people and for machines."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import select
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from emu import pcap
from emu.debug import dmacheck
from emu.debug.faults import FAULTS, fault
from emu.debug.options import MAX_INSTRUCTIONS, Options, split_command
from emu.debug.output import (
    Paint,
    UsageError,
    amount,
    clean,
    fail,
    interrupted,
    parse_number,
    print_json,
    size,
)
from emu.debug.phases import NAMES, Record
from emu.debug.places import check_places
from emu.debug.release import RELEASES, kernel_name
from emu.debug.update import Update
from emu.debug.verdict import Result
from emu.debug.workloads import DEFAULT as DEFAULT_WORKLOAD
from emu.debug.workloads import WORKLOADS, Stream, Workload, cache_line, workload
from emu.devices.platform import EXTRAS
from emu.errors import ConfigError, EmuError, ImageError
from emu.files import read_file
from emu.initproto import PLAN_UPDATES_MAX as UPDATES_MAX
from emu.initproto import Transcript
from emu.machine import Machine, Stop, StopKind
from emu.traffic import READY, TrafficSpec
from kho.abi import MAX_PAGE_ORDER

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
_UPDATES_HELP = "how many updates in a row (default 1, or one for each --new; 0: none; 64 with programs)"
DEFAULT_OLD, DEFAULT_NEW = RELEASES
_INTERACTIVE_SLICE = 5_000_000
_MOMENTS = ("J", "K", "F")
UPDATES_SHOWN_MAX = 2
"""A chain of more updates is shown as a table, unless -v wants everything."""
VIOLATIONS_SHOWN_MAX = 20
SESSIONS_SHOWN_MAX = 8


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
    a("--updates", metavar="N", help=_UPDATES_HELP)
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


def _when(text: str, option: str) -> tuple[str, Path]:
    when, separator, file = text.partition("=")
    known = when in _MOMENTS or when in NAMES
    if not separator or not file or not (known or when[:1].isdigit()):
        raise UsageError(
            f'"{text}" is not WHEN=FILE (WHEN: J, K, F, P1 to P22, or an instruction number)', option
        )
    if not known:
        when = str(parse_number(when, option))
    return when, Path(file)


def options(args: argparse.Namespace) -> Options:
    """Options of the command line. Raises UsageError."""
    work = _workload(args)
    old = kernel_name(args.old if args.old is not None else DEFAULT_OLD)
    new = [kernel_name(text) for text in args.new] or [DEFAULT_NEW if args.old is None else old]
    if args.incoming is not None:
        old = new[0]
    files: list[tuple[Path, str]] = []
    for text in args.file:
        host, separator, guest = text.rpartition(":")
        if not separator or not host or not guest.startswith("/"):
            raise UsageError(f'"{text}" is not HOST:GUEST with an absolute path in the guest', "--file")
        files.append((Path(host), guest))
    updates = max(len(new), work.updates) if args.updates is None else parse_number(args.updates, "--updates")
    if updates > UPDATES_MAX:
        raise UsageError(f"{updates:,} are too many: at most {UPDATES_MAX:,}", "--updates")
    if len(args.new) > 1 and updates != len(new):
        raise UsageError(f"{updates} updates, and {len(new)} times --new", "--updates")
    if not updates and (args.after or args.new):
        raise UsageError("with --updates 0 there is no update: --after and --new make no sense", "--updates")
    if args.interactive and args.json and not args.replay_input:
        raise UsageError("cannot be combined with --json", "--interactive")
    for option, value in (("--record-input", args.record_input), ("--replay-input", args.replay_input)):
        if value is not None and not args.interactive:
            raise UsageError("nobody reads the console without --interactive", option)
    if args.record_input is not None and args.replay_input is not None:
        raise UsageError("cannot be combined with --replay-input: nothing is typed", "--record-input")
    for command in (*args.before, *args.after):
        split_command(command)
    at = [("save", *_when(t, "--save")) for t in args.save] + [
        ("dump", *_when(t, "--dump")) for t in args.dump
    ]
    if args.raw and any(not when.isdigit() for _, when, _ in at):
        raise UsageError("with --raw nobody sees phases and moments: only an instruction number", "--raw")
    check_places(args, at)
    if any(c in args.cmdline for c in "\n\r"):
        raise UsageError("a command line is one line", "--cmdline")
    traffic, traffic_at = _traffic(args, work)
    symbols = args.symbols
    return Options(
        old=old,
        new=new[0],
        then=new[1:],
        old_symbols=_path(args.old_symbols or (None if old in RELEASES else symbols)),
        new_symbols=_path(args.new_symbols or (None if new[0] in RELEASES else symbols)),
        memory=work.memory if args.memory is None else parse_number(args.memory, "--memory"),
        cmdline=" ".join(filter(None, [work.cmdline, *_parameters(args), args.cmdline])),
        before=[*work.before, *args.before],
        after=[*(work.after if updates else ()), *args.after],
        files=files,
        programs=work.programs,
        libraries=not args.no_libs,
        updates=updates,
        init=_path(args.init),
        initramfs=_path(args.initramfs),
        incoming=_path(args.incoming),
        interactive=args.interactive,
        raw=args.raw,
        strict_memory=args.strict_memory,
        max_instructions=parse_number(args.max_instructions, "--max-instructions"),
        devices=[*work.devices, *(name for name in args.device if name not in work.devices)],
        traffic=traffic,
        traffic_at=traffic_at,
        at=at,
    )


def _traffic(args: argparse.Namespace, work: Workload) -> tuple[TrafficSpec | None, str | None]:
    """What is at the other end of the network cable, and the phase that starts it. Raises UsageError."""
    options = [("--traffic", args.traffic), ("--pcap-in", args.pcap_in), ("--pcap-out", args.pcap_out)]
    given = [option for option, value in options if value is not None]
    if work.traffic:
        if args.traffic is not None or args.pcap_in is not None:
            raise UsageError(f"workload {work.name} has its own: --rate, --frame-size", given[0])
        return TrafficSpec.parse(work.traffic), None
    if not given:
        return None, None
    if not any(name.split("/")[-1] == "e1000" for name in args.device):
        raise UsageError("there is no network card: --device e1000 adds one", given[0])
    words = (args.traffic or "").split(",")
    phase = next((w.removeprefix("start=") for w in words if w.removeprefix("start=") in NAMES), None)
    if phase is not None and args.raw:
        raise UsageError("there are no phases with --raw", "--traffic")
    spec = TrafficSpec.parse(",".join(w for w in words if phase is None or w != f"start={phase}"))
    sends = args.traffic is not None or args.pcap_in is not None
    if sends and phase is None and spec.start is None:
        spec = replace(spec, start=READY)
    if args.pcap_in is not None:
        spec = replace(spec, replay=pcap.read(Path(args.pcap_in)))
    return spec, phase


def _workload(args: argparse.Namespace) -> Workload:
    """What was asked for by name, or is to run where nothing else is. Raises UsageError, ConfigError."""
    name = args.workload
    if args.init is not None:
        for option, value in (("--before", args.before), ("--after", args.after), ("--workload", name)):
            if value:
                raise UsageError(f"its commands are run by luemu's init, which {option} needs", "--init")
    if args.incoming is not None:
        for option in ("old", "before", "workload", "updates", "memory", "preserve"):
            if getattr(args, option):
                raise UsageError("makes no sense with --incoming: the image has all that", f"--{option}")
        if len(args.new) > 1:
            raise UsageError("one kernel starts on what is --incoming", "--new")
    if args.fault is not None and name is None:
        name = "net"
    if name is None:
        own = args.before or args.after or args.interactive or args.init or args.initramfs or args.incoming
        name = "kho" if own else DEFAULT_WORKLOAD
    preserve = None if args.preserve is None else parse_number(args.preserve, "--preserve")
    stream = _stream(args)
    if name != "net":
        for option, value in _STREAM.items():
            if getattr(args, value):
                raise UsageError("only workload net has that", option)
        return workload(name, preserve)
    updates = len(args.new) or 1 if args.updates is None else parse_number(args.updates, "--updates")
    if args.fault is None:
        return workload(name, preserve, stream, updates)
    mistake = fault(args.fault)
    work = workload(name, preserve, stream, updates, mistake.start)
    return replace(work, cmdline=f"{work.cmdline} break={mistake.breaks}")


_STREAM = {
    "--rate": "rate",
    "--frame-size": "frame_size",
    "--ring": "ring",
    "--irq": "irq",
    "--fault": "fault",
}


def _stream(args: argparse.Namespace) -> Stream:
    """What is received, where it is not the default."""
    given: dict[str, Any] = {
        name: parse_number(getattr(args, name), option)
        for option, name in _STREAM.items()
        if name in ("rate", "frame_size", "ring") and getattr(args, name) is not None
    }
    irq = args.irq or (args.fault is not None and fault(args.fault).irq)
    return Stream(irq=irq, **given)


def _parameters(args: argparse.Namespace) -> list[str]:
    """What goes to the kernels' command line for options of their own. Linux has the same parameters."""
    out = []
    if args.scratch is not None:
        sizes = args.scratch.split(",")
        if len(sizes) != 3:
            raise UsageError(f'"{args.scratch}" is not L,G,N: three sizes', "--scratch")
        areas = [parse_number(text, "--scratch") for text in sizes]
        if not any(areas):
            raise UsageError("scratch cannot be empty: all three sizes are 0", "--scratch")
        out.append("kho_scratch=" + ",".join(str(area) for area in areas))
    if args.preserve_order is not None:
        order = parse_number(args.preserve_order, "--preserve-order")
        if order > MAX_PAGE_ORDER:
            raise UsageError(f"the largest folio has 2^{MAX_PAGE_ORDER} pages", "--preserve-order")
        out.append(f"test_kho.order={order}")
    return out


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


class Progress:
    """One line on a terminal that says where the run is; nothing in a pipe."""

    def __init__(self, update: Update, on: bool) -> None:
        self.update = update
        self.on = on
        self.next = 0.0
        self.shown = False

    def __call__(self, machine: Machine) -> None:
        now = time.monotonic()
        if not self.on or now < self.next:
            return
        self.next = now + 0.1
        observer = self.update.observer
        phase = f"{observer.phase}, kernel {observer.generation}" if observer else "running"
        print(
            f"\r\033[K{machine.instructions / 1e6:,.0f} M instructions  {phase}",
            end="",
            file=sys.stderr,
            flush=True,
        )
        self.shown = True

    def clear(self) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self.shown = False


class _Lines:
    """A file of JSON lines, each written at once: what was there survives whatever ends this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        with self._typed():
            self._file = path.open("w", buffering=1)

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            self.abandon()
            raise ImageError(f"cannot be written: {e.strerror}", str(self._path)) from None

    def write(self, value: object) -> None:
        """One more line. Raises ImageError."""
        with self._typed():
            if self._file is not None:
                self._file.write(json.dumps(value) + "\n")

    def close(self) -> None:
        """No more lines. Raises ImageError."""
        with self._typed():
            if self._file is not None:
                self._file.close()

    def abandon(self) -> None:
        """No more lines, and nothing more to complain about."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = None


class Trace:
    """JSON lines: phases, programs, the end."""

    def __init__(self, path: Path, update: Update) -> None:
        self.file = _Lines(path)
        self.update = update
        self.programs = 0
        self.ended: set[int] = set()
        if update.observer is not None:
            self.phase(update.observer.records[-1])  # the one that the run begins in
            update.on_phase = self.phase

    def write(self, event: str, **values: object) -> None:
        m = self.update.machine
        line = {"event": event, "tick": m.ticks, "instruction": m.instructions, **values}
        self.file.write(line)

    def phase(self, record: Record) -> None:
        self.write("phase", id=record.id, name=record.name, generation=record.generation)

    def records(self, t: Transcript) -> None:
        for i, p in enumerate(t.programs):
            if i >= self.programs:
                self.programs = i + 1
                self.write("program", argv=list(p.argv), when=p.when, generation=p.generation)
            if p.ended and i not in self.ended:
                self.ended.add(i)
                self.write("exit", argv=list(p.argv), status=p.status, signal=p.signal)

    def dma(self) -> None:
        """Each DMA request, at the end: their ticks say when they were."""
        watch = self.update.dma
        for event in watch.records() if watch is not None else ():
            self.file.write(dmacheck.plain(event))

    def end(self, stop: Stop) -> None:
        self.write("end", kind=stop.kind.value, message=stop.message)
        self.file.close()


@contextmanager
def _raw_terminal() -> Iterator[bool]:
    if not sys.stdin.isatty():
        yield False
        return
    import termios  # where there is none (no Unix), images can be inspected all the same
    import tty

    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def _interact(update: Update, record: Path | None) -> None:
    """Let the terminal talk to the console until the machine stops. Ctrl-] leaves."""
    m = update.machine
    log = _Lines(record) if record is not None else None
    print("console of the machine; Ctrl-] leaves\r", file=sys.stderr)
    with _raw_terminal():
        while True:
            skipped = m.ticks - m.instructions
            stop = update.advance(m.ticks + _INTERACTIVE_SLICE)
            # A guest that sleeps without any timer wakes when something is typed.
            asleep = stop.kind is StopKind.DEADLOCK and m.registers()["rflags"] & 0x200
            if stop.kind is not StopKind.UNTIL and not asleep:
                update.ended = stop
                break
            idle = 3600.0 if asleep else (m.ticks - m.instructions - skipped) / 1e9
            if not any(p.when == "interactive" and not p.ended for p in update.transcript.programs):
                continue  # nobody reads the console yet: what is typed would be lost
            if select.select([sys.stdin], [], [], idle)[0]:
                data = os.read(sys.stdin.fileno(), 256)
                if not data:  # the end of a file or pipe: the machine goes on alone
                    break
                if b"\x1d" in data:
                    data, update.ended = b"", _left(stop)
                if log is not None:
                    log.write([m.ticks, data.hex()])
                if not data:
                    break
                m.send(data)
    if log is not None:
        log.close()


def _left(stop: Stop) -> Stop:
    return replace(stop, kind=StopKind.REQUEST, message="the console was left with Ctrl-]")


def _replay(update: Update, path: Path) -> None:
    try:
        lines = [json.loads(line) for line in read_file(path).splitlines()]
        inputs = [(int(t), bytes.fromhex(d)) for t, d in lines]
    except (ValueError, TypeError, OverflowError, RecursionError) as e:
        raise ImageError(f"is no recorded input: {e}", str(path)) from None
    if any(one[0] > two[0] for one, two in itertools.pairwise([(0, b""), *inputs])):
        raise ImageError("is no recorded input: its ticks go backwards", str(path))
    for tick, data in inputs:
        stop = update.advance(tick)
        if stop.kind is not StopKind.UNTIL:
            update.ended = stop
            return
        if not data:
            update.ended = _left(stop)
            return
        update.machine.send(data)


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
            _replay(update, Path(args.replay_input))
        elif args.interactive:
            _interact(update, _path(args.record_input))
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


def show(result: Result, *, verbose: bool = False) -> None:
    """The result on one screen; a long chain of updates has a line for each."""
    paint = Paint(sys.stdout)
    many = len(result.updates) > UPDATES_SHOWN_MAX
    if result.phases and (verbose or not many):
        _show_phases(result, paint)
    if many:
        _show_chain(result, paint)
    for i, u in enumerate(result.updates):
        if verbose or not many:
            _show_update(i, u)
    for program in result.programs:
        status = program["status"]
        how = f"signal {program['signal']}" if status is None else f"exit {status}"
        if status is None and program["signal"] is None:
            how = "replaced the kernel" if program["replaced"] else "did not end"
        print(
            f"{program['when']} (kernel {program['generation']}): {clean(shlex.join(program['argv']))}: {how}"
        )
        if verbose or (status != 0 and not program["replaced"]):
            for line in program["output"].splitlines():
                print("  | " + clean(line))
    if result.cache is not None:
        print(f"cache: {cache_line(result.cache)}")
    if result.net is not None:
        _show_net(result.net)
    if result.traffic is not None:
        print(f"traffic: {_traffic_line(result.traffic)}")
    for v in result.violations[:VIOLATIONS_SHOWN_MAX]:
        at = "" if v["phys"] is None else f" ({v['phys']:#x})"
        print(paint("red", f"{v['id']} at {v['moment']}: {clean(v['message'])}{at}"))
    if len(result.violations) > VIOLATIONS_SHOWN_MAX:
        print(paint("red", f"and {len(result.violations) - VIOLATIONS_SHOWN_MAX} more (--json has all)"))
    if result.epitaph:
        print("\n".join(clean(line) for line in result.epitaph.splitlines()))
    print(f"state {result.state_hash} after {result.stop.instructions:,} instructions")
    if result.ok:
        print(paint("green", "ok"))
    else:
        for reason in result.reasons:
            print(paint("red", f"not ok: {clean(reason)}"))


def _show_net(n: dict[str, Any]) -> None:
    print(
        f"net: {n['sent']:,} frames sent, {n['received']:,} received: {n['lost']:,} lost, "
        f"{n['duplicated']:,} duplicated, {n['corrupted']:,} corrupted, {n['reordered']:,} out of order"
    )
    print(
        f"  longest time without a frame {n['longest_gap_instructions']:,} instructions; "
        f"without a look at the ring across an update {n['poll_gap_ticks'] / 1e6:,.3f} ms"
    )
    print(
        f"  that takes {n['ring_needed']:,} of the ring's {n['ring'] - 1:,} descriptors at this rate; "
        f"{n['backlog']:,} had been filled"
    )
    if n["interrupts"]["used"]:
        i = n["interrupts"]
        print(f"  interrupts: {i['signals']:,} signals, {i['spurious']:,} spurious, {i['lost']:,} lost")
    print(f"  {'DMA writes in phase':<24}{'writes':>10}{'microseconds':>15}")
    for phase, writes in n["dma_writes"].items():
        print(f"  {phase:<24}{writes:>10,}{n['phase_ticks'].get(phase, 0) / 1000:>15,.1f}")
    print(f"  {amount(len(n['dma_violations']), 'DMA violation')}")
    for v in n["dma_violations"][:VIOLATIONS_SHOWN_MAX]:
        where = "no page" if v["phys"] is None else f"page {v['phys']:#x} of {v['owner']}"
        print(
            f"  DMA violation: {v['device']} ({v['bdf']}), {where}, phase {v['phase']} of kernel "
            f"{v['kernel']}: {v['reason']} ({v['count']:,} times)"
        )


def _traffic_line(t: dict[str, Any]) -> str:
    out = [f"{amount(t['sent'], 'frame')} sent to the card", f"{t['frames']:,} sent by it"]
    out += [f"{t[what]:,} {what}" for what in ("foreign", "corrupted") if t[what]]
    for number, s in t["streams"].items():
        out.append(
            f"stream {number}: {s['received']:,}, {s['duplicated']} duplicated, {s['reordered']} reordered"
        )
    return "; ".join(out)


def _show_phases(result: Result, paint: Paint) -> None:
    totals: dict[tuple[int, str], list[int]] = {}
    for r in result.phases:
        total = totals.setdefault((r.generation, r.id), [0, 0, 0])
        total[0] += r.instructions
        total[1] += r.ticks
        total[2] += 1
    print(paint("bold", f"{'phase':<22}{'kernel':>7}{'times':>7}{'instructions':>17}{'microseconds':>15}"))
    for (generation, id), (instructions, ticks, count) in totals.items():
        name = NAMES[id] if id == "userspace" else f"{id:<4}{NAMES[id]}"
        print(f"{name:<22}{generation:>7}{count:>7}{instructions:>17,}{ticks / 1000:>15,.1f}")


def _show_chain(result: Result, paint: Paint) -> None:
    head = f"{'update':>6}  {'from':<16}{'to':<16}{'blackout':>14}{'digest':>14}{'preserved':>12}  invariants"
    print(paint("bold", head))
    for i, u in enumerate(result.updates):
        preserved = size(u["preserved"]["bytes"]) if u["preserved"] else "nothing"
        print(
            f"{i + 1:>6}  {_release(u['old']):<16}{_release(u['new']):<16}"
            f"{u['blackout_instructions']:>14,}{u['digest_instructions']:>14,}{preserved:>12}  "
            f"{len(u['checked'])} at {', '.join(u['moments']) or 'no moment'}"
        )


def _release(kernel: dict[str, Any]) -> str:
    return clean(kernel["release"] or "?")


def _show_update(number: int, u: dict[str, Any]) -> None:
    p = u["preserved"]
    print(f"update {number + 1}: {_release(u['old'])} -> {_release(u['new'])}")
    print(
        f"  blackout {u['blackout_instructions']:,} instructions, {u['blackout_ticks'] / 1e6:,.3f} ms; "
        f"of these {u['digest_instructions']:,} for the digest"
    )
    if p:
        print(
            f"  preserved {amount(p['pages'], 'page')} ({size(p['bytes'])}), of these "
            f"{size(p['metadata_bytes'])} metadata; tree {size(p['tree_bytes'])}"
        )
    for kept in u["kept"]:
        print(f"    {clean(kept['name'])}: {size(kept['bytes'])}{_details(kept)}")
    for s in u["sessions"][:SESSIONS_SHOWN_MAX]:
        print(f"  session {clean(s['name'])}: {amount(len(s['files']), 'file')}")
    rest = u["sessions"][SESSIONS_SHOWN_MAX:]
    if rest:
        files = sum(len(s["files"]) for s in rest)
        print(f"  and {amount(len(rest), 'session')} more with {amount(files, 'file')}")
    if u["scratch"] and u["kept"]:
        names = ["low", "global", *(f"node {i}" for i in range(len(u["scratch"]) - 2))]
        areas = [
            f"{name} {size(a['size'])} at {a['phys']:#x}" if a["size"] else f"{name} none"
            for name, a in zip(names, u["scratch"], strict=True)
        ]
        print(f"  scratch: {', '.join(areas)}")
    print(f"  checked {amount(len(u['checked']), 'invariant')} at {', '.join(u['moments']) or 'no moment'}")


def _details(kept: dict[str, Any]) -> str:
    if "folios" not in kept:
        return f" at {kept['phys']:#x}" if "phys" in kept else ""
    orders = sorted(int(order) for order in kept["orders"])
    if not orders:
        return ""
    which = f"order {orders[0]}" if len(orders) == 1 else f"orders {orders[0]} to {orders[-1]}"
    return f" in {amount(kept['folios'], 'folio')} of {which}"


__all__ = ["EmuError", "add_parser", "run"]
