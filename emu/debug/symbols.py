"""Names for addresses: System.map, ELF symbol tables, and DWARF lines where there are any.

Reads files only; knows no machine.
"""

from __future__ import annotations

import bisect
import re
import struct
from functools import cached_property
from pathlib import Path

from elftools.common.exceptions import DWARFError, ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from emu.debug.elf_symbols import symbols
from emu.errors import ImageError
from emu.files import is_regular, read_file

DAMAGE = (
    *(ELFError, DWARFError, ConstructError, OSError, struct.error),
    *(ValueError, LookupError, AttributeError, TypeError, ArithmeticError, AssertionError),
    *(MemoryError, RecursionError),
)
"""What reading a damaged ELF file with pyelftools raises; MemoryError: a section of absurd size."""
_NEAR_BYTES = 1 << 20
_LINE = re.compile(r"([0-9a-fA-F]+) (\S) (\S+)")


class Symbols:
    """Addresses by name and names by address of one kernel image."""

    def __init__(
        self,
        table: dict[str, int],
        source: Path | None = None,
        locals: dict[tuple[str, str], int] | None = None,
    ) -> None:
        """``locals`` are those of one source file, by its name and theirs."""
        self._table = table
        self._locals = locals or {}
        self._source = source
        pairs = sorted((a, n) for n, a in table.items() if a)
        self._addresses = [a for a, _ in pairs]
        self._names = [n for _, n in pairs]

    @classmethod
    def read(cls, path: Path) -> Symbols:
        """Symbols of a System.map or an ELF file. Raises ImageError."""
        data = read_file(path)
        if data[:4] == b"\x7fELF":
            return cls._read_elf(path)
        table: dict[str, int] = {}
        for number, line in enumerate(data.decode("latin-1").splitlines(), 1):
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise ImageError(
                    f"line {number} is not 'ADDRESS TYPE NAME': not a System.map or ELF file", str(path)
                )
            table.setdefault(match[3], int(match[1], 16))
        return cls(table)

    @classmethod
    def _read_elf(cls, path: Path) -> Symbols:
        table: dict[str, int] = {}
        locals: dict[tuple[str, str], int] = {}
        try:
            with path.open("rb") as f:
                for symbol in symbols(ELFFile(f)):
                    table.setdefault(symbol.name, symbol.value)
                    if symbol.file is not None:
                        locals.setdefault((symbol.file, symbol.name), symbol.value)
        except DAMAGE as e:
            raise ImageError(f"malformed ELF file: {e}", str(path)) from None
        return cls(table, path, locals)

    @classmethod
    def beside(cls, kernel: Path) -> Symbols | None:
        """Symbols that lie with a kernel image: itself if it is an ELF file, else System.map or vmlinux
        in its directory; None if there are none."""
        try:
            if not is_regular(kernel):
                return None
            with kernel.open("rb") as f:
                if f.read(4) == b"\x7fELF":
                    return cls.read(kernel)
        except OSError:
            return None
        for name in (f"System.map-{kernel.name}", "System.map", "vmlinux"):
            candidate = kernel.with_name(name)
            if candidate.is_file():
                return cls.read(candidate)
        return None

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def address(self, name: str) -> int | None:
        """Address of a name, None if there is none."""
        return self._table.get(name)

    def local(self, file: str, name: str) -> int | None:
        """Address of a name that is local to a source file ("luo_session.c"), None if there is none."""
        return self._locals.get((file, name))

    def describe(self, address: int) -> str:
        """``name+0x12`` for an address, or the bare address where no symbol is near."""
        i = bisect.bisect_right(self._addresses, address) - 1
        if i < 0 or address - self._addresses[i] > _NEAR_BYTES:
            return f"{address:#x}"
        offset = address - self._addresses[i]
        return f"{self._names[i]}+{offset:#x}" if offset else self._names[i]

    def start(self, address: int) -> int | None:
        """Where the symbol that `describe` names begins; None if none is near."""
        i = bisect.bisect_right(self._addresses, address) - 1
        return self._addresses[i] if i >= 0 and address - self._addresses[i] <= _NEAR_BYTES else None

    @cached_property
    def _lines(self) -> list[tuple[int, str]]:
        if self._source is None:
            return []
        out: list[tuple[int, str]] = []
        try:
            with self._source.open("rb") as f:
                elf = ELFFile(f)
                if not elf.has_dwarf_info():
                    return []
                dwarf = elf.get_dwarf_info()
                for unit in dwarf.iter_CUs():
                    program = dwarf.line_program_for_CU(unit)
                    if program is None:
                        continue
                    files = program["file_entry"]
                    first = 0 if program["version"] >= 5 else 1
                    for entry in program.get_entries():
                        state = entry.state
                        if state is None:
                            continue
                        if state.end_sequence:
                            out.append((state.address, ""))
                            continue
                        index = state.file - first
                        name = (
                            files[index].name.decode("utf-8", "replace") if 0 <= index < len(files) else "?"
                        )
                        out.append((state.address, f"{name}:{state.line}"))
        except DAMAGE:
            return []  # without lines, addresses and names still help
        out.sort(key=lambda pair: pair[0])
        return out

    def line(self, address: int) -> str:
        """``file.c:12`` of an address, or an empty string."""
        i = bisect.bisect_right(self._lines, address, key=lambda pair: pair[0]) - 1
        return self._lines[i][1] if i >= 0 else ""
