"""`luemu check IMAGE`: verify the numbered invariants on a handover. Exit status 1 when one is broken, or
when the kernel that it is `--for` would not take all of it."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from typing import Any

from emu.debug.inspect import add_options, open_handover, open_memory
from emu.debug.inspect_draw import draw_violations
from emu.debug.output import Branch, Paint, UsageError, clean, fail, print_json, print_tree
from emu.debug.predict import Prediction, accepted, predict, predict_unknown
from emu.debug.release import Kernel, kernel_name
from emu.errors import ImageError
from kho.abi import KHO_COMPATIBLE
from kho.check import Report, failed
from kho.errors import KhoError
from luo.check import TABLE

EXAMPLE = """example:
  luemu check dump.raw.zst
  luemu check --moment J --scratch 0x7b2c000,48 --json memory.img
  luemu check dump.raw --for new            will the release "new" adopt it, and what is lost if not?
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "check",
        help="verify the invariants of the handover in a memory image",
        description="Verify the numbered invariants; list each violation with address and meaning.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--for", dest="kernel", metavar="KERNEL",
        help="predict whether this kernel (a release, bzImage or ELF) will adopt it, and what is lost if not",
    )  # fmt: skip
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand: 0 when all that was checked holds, 1 when not, 2 when nothing could be checked."""
    args.moment_used = "auto"
    prediction: Prediction | None = None
    try:
        kernel = None if args.kernel is None else Kernel.open(kernel_name(args.kernel))
        if kernel is not None:
            accepted(kernel)  # what is wrong with it is said before the image is read
        try:
            opened = open_handover(args)
            report = opened.check()
            if kernel is not None:
                prediction = predict(kernel, opened.handover)
        except KhoError as error:
            # a root FDT that no kernel would accept is a broken invariant, if it is known where it should be
            moment = args.moment_used if args.moment_used != "auto" else "K"
            unknown = None if kernel is None else _of_another_version(args, kernel, moment)
            broken = failed(error, moment, TABLE)
            if unknown is not None:
                report, prediction = unknown
            elif broken is not None:
                report = broken
            else:
                return fail(error, args.json)
    except (UsageError, ImageError) as error:
        return fail(error, args.json)
    ok = report.ok and (prediction is None or prediction.ok)
    if args.json:
        more = {} if prediction is None else {"prediction": prediction.to_dict()}
        print_json(report.to_dict() | {"ok": ok} | more)
    else:
        tree = draw(report, str(args.image), summary=args.summary)
        if prediction is not None:
            prediction.draw(tree, Paint(sys.stdout))
        print_tree(tree, sys.stdout)
    return 0 if ok else 1


def _of_another_version(
    args: argparse.Namespace, kernel: Kernel, moment: str
) -> tuple[Report, Prediction] | None:
    """For a handover of which only the version can be read; None if that is not what is wrong with it."""
    try:
        memory, fdt = open_memory(args)
        prediction = predict_unknown(kernel, memory, fdt)
    except KhoError:
        return None
    version = prediction.written["kho"]
    if version == KHO_COMPATIBLE:
        return None
    report = Report(moment)
    report.not_checked = dict.fromkeys(TABLE, f"the handover has the unknown version {version}")
    return report, prediction


def draw(report: Report, image: str, *, summary: bool = False) -> Branch:
    """The report as a tree of lines."""
    paint = Paint(sys.stdout)
    tree = Branch(paint("bold", clean(image)))
    draw_violations(tree, report, paint)
    for id in () if summary else dict.fromkeys(violation.id for violation in report.violations):
        tree.add(f"{id}: {TABLE[id].title}")
    if not summary:
        tree.add(f"checked: {_short(report.checked)}")
        reasons: defaultdict[str, list[str]] = defaultdict(list)
        for id, reason in report.not_checked.items():
            reasons[reason].append(id)
        lines = tree.add(paint("dim", f"not checked: {len(report.not_checked)}"))
        for reason, ids in reasons.items():
            lines.add(f"{_short(ids)}: {reason}")
    return tree


def _short(ids: list[str]) -> str:
    return "INV-" + ", ".join(id.removeprefix("INV-") for id in ids) if ids else "none"
