"""The symbols of an ELF file, a table at once: a Linux has a hundred thousand, too many to parse each."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

_ENTRY = struct.Struct("<IBBHQQ")  # name, type and binding, visibility, section, value, size
_UNDEFINED, _LOCAL, _FILE = 0, 0, 4


class Symbol(NamedTuple):
    """One that has a name and a value."""

    name: str
    value: int
    file: str | None
    """the source file that it is local to"""


def symbols(elf: ELFFile) -> Iterator[Symbol]:
    """Of all tables, in their order. Raises ELFError."""
    for section in elf.iter_sections():
        if not isinstance(section, SymbolTableSection):
            continue
        if elf.elfclass != 64 or not elf.little_endian:
            raise ELFError("it is not of x86-64")
        raw, names, file = section.data(), section.stringtable.data(), ""
        if len(raw) != section["sh_size"] or len(raw) % _ENTRY.size:
            raise ELFError(f"{section.name} is cut off")
        for at, info, _, where, value, _ in _ENTRY.iter_unpack(raw):
            name = names[at : names.find(b"\0", at)].decode("utf-8", "replace")
            if info & 15 == _FILE:
                file = name
            elif name and where != _UNDEFINED:
                yield Symbol(name, value, file if info >> 4 == _LOCAL else None)


__all__ = ["Symbol", "symbols"]
