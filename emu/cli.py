"""The `luemu` command: one file a subcommand, each in emu/debug. Exit status: 0 what was checked
holds, 1 it does not, 2 bad usage or input, 3 internal error or unsupported host."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from emu.debug.output import interrupted
from emu.errors import EmuError, UnsupportedHost

_DESCRIPTION = "Full-system emulator of kexec-based kernel live update (KHO and LUO)."
_EPILOG = """\
luemu run      perform a live update on the emulated machine and verify it
luemu inspect  decode the handover in a memory image
luemu check    verify the invariants of one
luemu selftest run the machine's own bare-metal test guest

Each has --help with an example, and --json.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, or in JSON when that was asked for."""

    def error(self, message: str) -> NoReturn:
        if "--json" in sys.argv:
            print(
                json.dumps(
                    {"ok": False, "error": {"kind": "bad-usage", "message": message, "where": self.prog}}
                )
            )
        else:
            print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _version() -> str:
    try:
        return importlib.metadata.version("luemu")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def parser() -> argparse.ArgumentParser:
    """The command line. Subcommands are imported here: nothing imports the tools but this."""
    from emu.debug import check, inspect, run, selftest

    p = _Parser(
        prog="luemu",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--version", action="version", version=f"luemu {_version()}")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for module in (run, inspect, check, selftest):
        module.add_parser(commands)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the shell closed it: `<&-`
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    p = parser()
    args = p.parse_args(argv)
    if args.command is None:
        p.print_help()
        return 2
    try:
        status: int = args.func(args)
        sys.stdout.flush()
        return status
    except UnsupportedHost as e:
        return _report(e, args)
    except EmuError as e:
        return _report(e, args)
    except BrokenPipeError:  # the reader went away: nothing more to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return interrupted(getattr(args, "json", False))
    except Exception as e:  # a defect of ours; or the output cannot be written
        traceback.print_exc()
        return _report(EmuError(f"internal error: {type(e).__name__}: {e}"), args)


def _report(error: EmuError, args: argparse.Namespace) -> int:
    if getattr(args, "json", False):
        print(
            json.dumps(
                {"ok": False, "error": {"kind": error.kind, "message": error.message, "where": error.where}}
            )
        )
    else:
        print(f"luemu: {error}", file=sys.stderr)
    return 3 if isinstance(error, UnsupportedHost) or type(error) is EmuError else 2
