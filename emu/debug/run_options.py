"""The command line of `luemu run` as `Options`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from emu import pcap
from emu.debug.faults import fault
from emu.debug.options import Options, split_command
from emu.debug.output import UsageError, parse_number
from emu.debug.phases import NAMES
from emu.debug.places import check_places
from emu.debug.release import RELEASES, kernel_name
from emu.debug.workloads import DEFAULT as DEFAULT_WORKLOAD
from emu.debug.workloads import Stream, Workload, workload
from emu.initproto import PLAN_UPDATES_MAX as UPDATES_MAX
from emu.traffic import READY, TrafficSpec
from kho.abi import MAX_PAGE_ORDER

DEFAULT_OLD, DEFAULT_NEW = RELEASES
_MOMENTS = ("J", "K", "F")
_STREAM = {
    "--rate": "rate",
    "--frame-size": "frame_size",
    "--ring": "ring",
    "--irq": "irq",
    "--fault": "fault",
}


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


__all__ = ["options"]
