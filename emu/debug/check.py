"""`luemu check IMAGE`: verify the numbered invariants on a handover; exit status 1 when one is broken."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from typing import Any

from emu.debug.inspect import add_options, draw_violations, open_handover
from emu.debug.output import Branch, Paint, UsageError, clean, fail, print_json, print_tree
from kho.check import Report, failed
from kho.errors import KhoError
from luo.check import TABLE

EXAMPLE = """example:
  luemu check dump.raw.zst
  luemu check --moment J --scratch 0x7b2c000,48 --json memory.img
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
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand: 0 when all that was checked holds, 1 when not, 2 when nothing could be checked."""
    args.moment_used = "auto"
    try:
        opened = open_handover(args)
        report = opened.check()
    except KhoError as error:
        # a root FDT that no kernel would accept is a broken invariant, if it is known where it should be
        moment = args.moment_used if args.moment_used != "auto" else "K"
        broken = failed(error, moment, TABLE)
        if broken is None:
            return fail(error, args.json)
        report = broken
    except UsageError as error:
        return fail(error, args.json)
    if args.json:
        print_json(report.to_dict())
    else:
        print_tree(draw(report, str(args.image), summary=args.summary), sys.stdout)
    return 0 if report.ok else 1


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
