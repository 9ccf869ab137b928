"""Where a run writes: each place once, none of them what it reads, all in directories that exist.

What is wrong with them is said before the run instead of after it, and nothing is lost.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from emu.debug import dump
from emu.debug.output import UsageError
from emu.errors import ImageError
from emu.files import is_regular

At = tuple[str, str, Path]
"""(what, when, file) of --save and --dump"""


def check_places(args: argparse.Namespace, at: list[At]) -> None:
    """Raises UsageError, ImageError."""
    read = {_real(path): option for option, path in _inputs(args)}
    written: dict[str, str] = {}
    for option, path in _outputs(args, at):
        real = _real(path)
        if os.path.lexists(real) and not is_regular(Path(real)):
            continue  # a device or a pipe takes all there is; a directory is refused when it is opened
        if not Path(real).parent.is_dir():
            raise ImageError("cannot be written: No such file or directory", str(path))
        if real in read:
            raise UsageError(f"{path} is what {read[real]} reads", option)
        if real in written:
            both = "twice" if written[real] == option else f"by {written[real]} as well"
            raise UsageError(f"{path} would be written {both}", option)
        written[real] = option


def _real(path: str | Path) -> str:
    """Where symbolic links lead; what is no path at all is left as it is."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def _outputs(args: argparse.Namespace, at: list[At]) -> Iterator[tuple[str, Path]]:
    for option, text in (
        ("--trace", args.trace),
        ("--record-input", args.record_input),
        ("--pcap-out", args.pcap_out),
    ):
        if text is not None:
            yield option, Path(text)
    described: set[tuple[str, Path]] = set()
    for what, when, path in at:
        yield f"--{what}", path
        json = dump.beside(path) if what == "dump" else dump.beside_saved(path)
        if (when, json) not in described:  # images of one moment may share what is beside them
            described.add((when, json))
            yield f"--{what}", json


def _inputs(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for option in ("old", "symbols", "old_symbols", "new_symbols", "init", "initramfs", "incoming", "pcap_in",
                   "replay_input"):  # fmt: skip
        if getattr(args, option) is not None:
            yield "--" + option.replace("_", "-"), getattr(args, option)
    yield from (("--new", path) for path in args.new)
    yield from (("--file", text.rpartition(":")[0]) for text in args.file)


__all__ = ["check_places"]
