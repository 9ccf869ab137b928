"""What the commands print, for people and for machines: units, colour, trees, numbers of the command line,
errors.

Colour appears on a terminal only, and never when NO_COLOR is set. With ``--json`` one document goes to
stdout, whatever happens.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TextIO

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
DIGITS_MAX = 64
NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([kKmMgGtT]?)")


class UsageError(Exception):
    """An option has a value that makes no sense."""

    kind = "bad-usage"

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


def parse_number(text: str, option: str) -> int:
    """A number of the command line: decimal or 0x hex, with K, M, G, T for powers of 1024. UsageError."""
    match = NUMBER.fullmatch(text.strip())
    shown = text if len(text) <= DIGITS_MAX else text[:DIGITS_MAX] + "..."
    if match is None:
        raise UsageError(f'"{shown}" is no number (decimal or 0x hex, with K, M, G or T)', option)
    digits, unit = match.groups()
    if len(digits) > DIGITS_MAX:
        raise UsageError(f"{shown} is too large a number", option)
    value = int(digits, 0) if digits[:2].lower() == "0x" else int(digits)
    value <<= 10 * (" KMGT".index(unit.upper()) if unit else 0)
    if value >> 64:
        raise UsageError(f"{shown} is too large a number: 64 bits are all there are", option)
    return value


def size(count: int) -> str:
    """Bytes in the largest binary unit that keeps the number exact to a tenth: ``48 MiB``, ``1.5 KiB``."""
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(UNITS) - 1:
        value /= 1024
        unit += 1
    number = f"{value:.1f}".removesuffix(".0")
    return f"{number} {UNITS[unit]}"


def amount(count: int, one: str, many: str | None = None) -> str:
    """``1 file``, ``2 files``, ``12,345 files``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def clean(text: str) -> str:
    """Text from memory that may hold anything, safe to print: control characters become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@dataclass
class Paint:
    """Colours for one stream, or none."""

    stream: TextIO

    @property
    def on(self) -> bool:
        """Whether the stream takes colours."""
        return self.stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def __call__(self, style: str, text: str) -> str:
        """The text in that style."""
        return f"\033[{COLOURS[style]}m{text}\033[0m" if self.on else text


@dataclass
class Branch:
    """A line with lines below it."""

    text: str
    branches: list[Branch] = field(default_factory=list)

    def add(self, text: str) -> Branch:
        """A new line below this one."""
        self.branches.append(Branch(text))
        return self.branches[-1]

    def lines(self, ascii_only: bool = False) -> Iterable[str]:
        """The tree, drawn."""
        yield self.text
        middle, last, bar = ("|-- ", "`-- ", "|   ") if ascii_only else ("├── ", "└── ", "│   ")
        for branch in self.branches:
            is_last = branch is self.branches[-1]
            for number, line in enumerate(branch.lines(ascii_only)):
                if number == 0:
                    yield (last if is_last else middle) + line
                else:
                    yield ("    " if is_last else bar) + line


def printable(stream: TextIO) -> None:
    """What the stream's encoding has no character for is printed as an escape instead of ending us."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


_ASCII = str.maketrans({"…": "...", "×": "x"})


def print_tree(tree: Branch, stream: TextIO) -> None:
    """Draw a tree, with ASCII where the stream cannot take box-drawing characters."""
    try:
        "├└│".encode(stream.encoding or "ascii")
        ascii_only = False
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    for line in tree.lines(ascii_only):
        print(line.translate(_ASCII) if ascii_only else line, file=stream)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    json.dump(document, sys.stdout, indent=1)
    print()


def interrupted(as_json: bool) -> int:
    """Report that the user ended it; returns the exit status."""
    if as_json:
        message = "interrupted before there was a result"
        print_json({"ok": False, "error": {"kind": "interrupted", "message": message, "where": ""}})
    else:
        print("luemu: interrupted", file=sys.stderr)
    return 1


def fail(error: Any, as_json: bool) -> int:
    """Report an error with kind, message and where; returns the exit status for bad usage or input, 2."""
    if as_json:
        print_json(
            {"ok": False, "error": {"kind": error.kind, "message": error.message, "where": error.where}}
        )
    else:
        print(f"luemu: {clean(str(error))}", file=sys.stderr)
    return 2
