"""One format, described twice: a header of the guest against a module of the host, by the kernels' debug
information. `Contract` has what the host's side says; each `tests/guest/test_*_abi.py` has one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from emu.debug.layout import Layouts


@dataclass(frozen=True)
class Contract:
    """``members``: structure → member → (offset, bytes); ``sizes``: structure → bytes; ``constants``: the
    enumerators of ``enumeration``; ``texts``: macros that are string literals; ``versions``: symbol of the
    image → the compatible string that it holds."""

    header: Path
    enumeration: str
    members: Mapping[str, Mapping[str, tuple[int, int]]]
    sizes: Mapping[str, int]
    constants: Mapping[str, int]
    texts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def check_image(self, elf: Path) -> None:
        """Structures, numbers and compatible strings of one release."""
        layouts = Layouts.read(elf)
        for name, members in self.members.items():
            structure = layouts.struct(name)
            found = {m: (v.offset, v.size) for m, v in structure.members.items()}
            assert (name, structure.size, found) == (name, self.sizes[name], members)
        assert {name: layouts.constant(name) for name in self.constants} == self.constants
        with elf.open("rb") as f:
            file = ELFFile(f)
            symbols: Any = file.get_section_by_name(".symtab")
            for name, version in self.versions.items():
                symbol = symbols.get_symbol_by_name(name)[0]
                section = file.get_section(symbol["st_shndx"])
                at = symbol["st_value"] - section["sh_addr"]
                assert section.data()[at : at + symbol["st_size"]] == version.encode() + b"\0", name

    def check_header(self) -> None:
        """Nothing of the header is left out."""
        text = self.header.read_text()
        start = text.index(f"enum {self.enumeration}")
        names = re.findall(r"^\s*([A-Z][A-Z0-9_]+) =", text[start : text.index("};", start)], re.MULTILINE)
        assert sorted(names) == sorted(self.constants)
        plain = re.findall(r"#define\s+\w+\s+(?:0x[0-9a-f]+|\d+)\s*$", text, re.MULTILINE)
        assert not plain, "a number that is no enumerator"
        assert sorted(re.findall(r"^struct (\w+) \{", text, re.MULTILINE)) == sorted(self.members)
        assert dict(re.findall(r'^#define\s+(\w+)\s+"([^"]*)"', text, re.MULTILINE)) == self.texts
