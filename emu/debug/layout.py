"""Layouts of C structures, from the DWARF of an ELF file: sizes and offsets that differ between releases.

Reads files only. A structure is looked for when it is first asked for, unit by unit, so that what is cheap to
find is found cheaply.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elftools.common.exceptions import DWARFError, ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from emu.errors import ImageError
from emu.files import read_file

_DAMAGE = (ELFError, DWARFError, ConstructError, ValueError, LookupError, OverflowError, OSError, TypeError,
           AttributeError, AssertionError)  # fmt: skip
_NAMELESS = ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type",
             "DW_TAG_atomic_type")  # fmt: skip
_DEPTH_MAX = 32


class UnknownStructure(ImageError):
    """The debug information has no such structure or member."""

    kind = "unknown-structure"


@dataclass(frozen=True)
class Member:
    """``size`` is that of the whole member; an array has ``count`` elements of ``size // count`` bytes.
    ``type`` names its structure, if it is one (or an array of them)."""

    offset: int
    size: int
    count: int = 1
    type: str = ""


@dataclass(frozen=True)
class Structure:
    """A struct or union. Members of nameless structures inside it are its own."""

    name: str
    size: int
    members: Mapping[str, Member] = field(default_factory=dict)

    def __getitem__(self, member: str) -> Member:
        if member not in self.members:
            raise UnknownStructure(f"struct {self.name} has no member {member}")
        return self.members[member]

    def offset(self, member: str) -> int:
        """Offset of a member, in bytes. Raises UnknownStructure."""
        return self[member].offset


class Layouts:
    """Structures by name. The whole of an ELF file without debug information is empty."""

    def __init__(self, data: bytes, where: str = "") -> None:
        self._where = where
        self._known: dict[str, Structure] = {}
        self._constants: dict[str, int] = {}
        self._units = self._scan(data)

    @classmethod
    def read(cls, path: Path) -> Layouts:
        """From an ELF file. Raises ImageError if it cannot be read."""
        return cls(read_file(path), str(path))

    def struct(self, name: str) -> Structure:
        """The structure of this name. Raises UnknownStructure, and ImageError for damaged information."""
        while name not in self._known:
            self._advance(f"struct {name}")
        return self._known[name]

    def __contains__(self, name: str) -> bool:
        try:
            self.struct(name)
        except ImageError:
            return False
        return True

    def constant(self, name: str) -> int:
        """Value of an enumerator. Raises UnknownStructure."""
        while name not in self._constants:
            self._advance(f"enumerator {name}")
        return self._constants[name]

    def offset(self, struct: str, path: str) -> int:
        """Offset of a member of a member …: ``offset("memblock", "reserved.cnt")``. UnknownStructure."""
        at = 0
        for name in path.split("."):
            member = self.struct(struct)[name]
            at, struct = at + member.offset, member.type
        return at

    # ---- reading -------------------------------------------------------------------------------

    def _advance(self, wanted: str) -> None:
        try:
            next(self._units)
        except StopIteration:
            raise UnknownStructure(f"the debug information has no {wanted}", self._where) from None
        except _DAMAGE as e:
            raise ImageError(f"malformed debug information: {e}", self._where) from None

    def _scan(self, data: bytes) -> Iterator[None]:
        elf = ELFFile(io.BytesIO(data))
        if not elf.has_dwarf_info():
            return
        for unit in elf.get_dwarf_info().iter_CUs():
            for die in unit.get_top_DIE().iter_children():
                if die.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
                    name = _name(die)
                    if name and name not in self._known and "DW_AT_declaration" not in die.attributes:
                        members = dict(_members(die, 0, 0))
                        self._known[name] = Structure(name, _value(die, "DW_AT_byte_size"), members)
                elif die.tag == "DW_TAG_enumeration_type":
                    for child in die.iter_children():
                        self._constants.setdefault(_name(child), _value(child, "DW_AT_const_value"))
            yield


def _name(die: Any) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode("utf-8", "replace") if attribute is not None else ""


def _value(die: Any, attribute: str, default: int = 0) -> int:
    found = die.attributes.get(attribute)
    return int(found.value) if found is not None else default


def _members(die: Any, base: int, depth: int) -> Iterator[tuple[str, Member]]:
    if depth > _DEPTH_MAX:
        raise ValueError("structures are nested too deeply")
    for child in die.iter_children():
        if child.tag != "DW_TAG_member" or "DW_AT_type" not in child.attributes:
            continue
        kind = _resolve(child)
        offset = base + _value(child, "DW_AT_data_member_location")
        name = _name(child)
        if name:
            yield name, Member(offset, *_size(kind, 0))
        elif kind is not None and kind.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
            yield from _members(kind, offset, depth + 1)


def _resolve(die: Any) -> Any:
    """The type of a DIE, without typedef, const and volatile; None for void."""
    for _ in range(_DEPTH_MAX):
        if "DW_AT_type" not in die.attributes:
            return None
        die = die.get_DIE_from_attribute("DW_AT_type")
        if die.tag not in _NAMELESS:
            return die
    raise ValueError("a type refers to itself")


def _size(kind: Any, depth: int) -> tuple[int, int, str]:
    """(bytes, elements, name of the structure) of a type."""
    if kind is None or depth > _DEPTH_MAX:
        return 0, 1, ""
    if kind.tag == "DW_TAG_pointer_type":
        return _value(kind, "DW_AT_byte_size", 8), 1, ""
    if kind.tag == "DW_TAG_array_type":
        size, _, name = _size(_resolve(kind), depth + 1)
        count = 1
        for child in kind.iter_children():
            if child.tag == "DW_TAG_subrange_type":
                upper = _value(child, "DW_AT_upper_bound", -1) + 1
                count *= _value(child, "DW_AT_count", upper)
        return size * count, count, name
    named = kind.tag in ("DW_TAG_structure_type", "DW_TAG_union_type")
    return _value(kind, "DW_AT_byte_size"), 1, _name(kind) if named else ""


__all__ = ["Layouts", "Member", "Structure", "UnknownStructure"]
