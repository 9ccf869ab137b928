"""The `luemu` command: one file a subcommand, each in emu/debug. Exit status: 0 what was checked
holds, 1 it does not, 2 bad usage or input, 3 internal error or unsupported host."""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from emu.debug.output import clean, fail, interrupted, print_json, printable
from emu.errors import EmuError, UnsupportedHost

_DESCRIPTION = "Full-system emulator of kexec-based kernel live update (KHO and LUO)."
_EPILOG = """\
luemu run      perform a live update on the emulated machine and verify it
luemu inspect  decode the handover in a memory image
luemu check    verify the invariants of one
luemu selftest run the machine's own bare-metal test guest

Each has --help with an example, and --json.
Exit status: 0 what was checked holds, 1 it does not (or the run was interrupted), 2 bad usage, bad input, or
output that cannot be written, 3 internal error or unsupported host.
"""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Why a stream cannot be written; a file that cannot is an ImageError of those who write it."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, or in JSON when that was asked for. Options are not abbreviated: what a
    script says would become ambiguous with the next option."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **more})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Of a subcommand, unknown words are its own to complain about."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        if "--json" in sys.argv:
            print_json(
                {"ok": False, "error": {"kind": "bad-usage", "message": message, "where": self.prog}}
            )
        else:
            print(f"{self.prog}: {clean(message)} (see {self.prog} --help)", file=sys.stderr)
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
    printable(sys.stdout)
    as_json = "--json" in (sys.argv if argv is None else argv)
    try:
        try:
            status = _command(argv)
        finally:  # --help, --version and bad usage leave by an exception
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader went away: nothing more to say
        _abandon_stdout()
        return 1
    except KeyboardInterrupt:
        return interrupted(as_json)
    except OSError as e:
        if e.errno not in _NO_ROOM or e.filename is not None:
            return _internal(e, as_json)
        _abandon_stdout()
        print(f"luemu: stdout: cannot be written: {e.strerror}", file=sys.stderr)
        return 2
    except Exception as e:  # a defect of ours
        return _internal(e, as_json)


def _command(argv: Sequence[str] | None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.command is None:
        p.print_help()
        return 2
    try:
        status: int = args.func(args)
        return status
    except EmuError as e:
        return _report(e, getattr(args, "json", False))


def _abandon_stdout() -> None:
    """Whatever is left goes nowhere, so that Python does not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _internal(e: Exception, as_json: bool) -> int:
    traceback.print_exc()
    return _report(EmuError(f"internal error: {type(e).__name__}: {e}"), as_json)


def _report(error: EmuError, as_json: bool) -> int:
    status = fail(error, as_json)
    return 3 if isinstance(error, UnsupportedHost) or type(error) is EmuError else status
