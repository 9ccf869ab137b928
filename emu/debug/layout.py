"""Layouts of C structures, from the DWARF of an ELF file: sizes and offsets that differ between releases.

Reads files only. A structure is looked for when it is first asked for, unit by unit. A kernel has tens of
thousands of entries, of which a few hundred matter: what is not about types is stepped over unread, which is
why the entries are walked here and not by pyelftools, whose sections and names this uses.

Format: DWARF 4, 32-bit (DWARF Debugging Information Format, version 4, sections 2 and 7).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elftools.dwarf.enums import ENUM_DW_AT, ENUM_DW_FORM, ENUM_DW_TAG
from elftools.elf.elffile import ELFFile

from emu.debug.symbols import DAMAGE
from emu.errors import ImageError
from emu.files import read_file

_DEPTH_MAX = 32
_VERSION = 4
_TAGS, _NAMES, _FORMS = (
    {number: name for name, number in table.items() if isinstance(number, int)}
    for table in (ENUM_DW_TAG, ENUM_DW_AT, ENUM_DW_FORM)
)
_STRUCTURES = ("DW_TAG_structure_type", "DW_TAG_union_type")
_TYPES = (
    *_STRUCTURES, "DW_TAG_member", "DW_TAG_enumeration_type", "DW_TAG_enumerator", "DW_TAG_pointer_type",
    "DW_TAG_array_type", "DW_TAG_subrange_type", "DW_TAG_base_type",
)  # fmt: skip
_NAMELESS = (
    "DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type",
    "DW_TAG_atomic_type",
)  # fmt: skip
_FIXED = {
    "DW_FORM_addr": 8, "DW_FORM_data1": 1, "DW_FORM_data2": 2, "DW_FORM_data4": 4, "DW_FORM_data8": 8,
    "DW_FORM_flag": 1, "DW_FORM_flag_present": 0, "DW_FORM_strp": 4, "DW_FORM_ref1": 1, "DW_FORM_ref2": 2,
    "DW_FORM_ref4": 4, "DW_FORM_ref8": 8, "DW_FORM_ref_addr": 4, "DW_FORM_sec_offset": 4,
    "DW_FORM_ref_sig8": 8,
}  # fmt: skip
_BLOCKS = {"DW_FORM_block1": 1, "DW_FORM_block2": 2, "DW_FORM_block4": 4}


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
        except DAMAGE as e:
            raise ImageError(f"malformed debug information: {e}", self._where) from None

    def _scan(self, data: bytes) -> Iterator[None]:
        elf = ELFFile(io.BytesIO(data))
        raw, forms, strings = (
            section.data() if (section := elf.get_section_by_name(name)) is not None else b""
            for name in (".debug_info", ".debug_abbrev", ".debug_str")
        )
        at = 0
        while at + 11 <= len(raw):
            length, version, abbreviations, _ = struct.unpack_from("<IHIB", raw, at)
            end = at + 4 + length
            if version != _VERSION or not 7 <= length <= len(raw) - at - 4:
                raise ValueError(f"unit at {at:#x} has version {version} and {length} bytes")
            self._take(_Unit(raw, strings, at, end, _abbreviations(forms, abbreviations)))
            at = end
            yield

    def _take(self, unit: _Unit) -> None:
        for die in unit.entries.values():
            if die.tag in _STRUCTURES:
                name = die.name
                if name and name not in self._known and "DW_AT_declaration" not in die.values:
                    self._known[name] = Structure(name, die.number("DW_AT_byte_size"), unit.members(die))
            elif die.tag == "DW_TAG_enumerator" and die.name:
                self._constants.setdefault(die.name, die.number("DW_AT_const_value"))


@dataclass
class _Die:
    """An entry that is about a type."""

    tag: str
    values: dict[str, Any]
    children: list[_Die] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.values.get("DW_AT_name", ""))

    def number(self, attribute: str, default: int = 0) -> int:
        return int(self.values.get(attribute, default))


@dataclass(frozen=True)
class _Abbreviation:
    """Form of an entry. ``size`` is that of its attributes where that is always the same, else -1."""

    tag: str
    children: bool
    attributes: list[tuple[str, str]]
    size: int


def _uleb(raw: bytes, at: int) -> tuple[int, int]:
    """A LEB128 number and the offset behind it."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _abbreviations(raw: bytes, at: int) -> dict[int, _Abbreviation]:
    """The table at this offset of `.debug_abbrev`."""
    out: dict[int, _Abbreviation] = {}
    while True:
        code, at = _uleb(raw, at)
        if not code:
            return out
        tag, at = _uleb(raw, at)
        children = bool(raw[at])
        at += 1
        attributes = []
        while True:
            name, at = _uleb(raw, at)
            form, at = _uleb(raw, at)
            if not name and not form:
                break
            attributes.append((_NAMES.get(name, ""), _FORMS[form]))
        sizes = [_FIXED.get(form, -1) for _, form in attributes]
        size = -1 if -1 in sizes else sum(sizes)
        out[code] = _Abbreviation(_TAGS.get(tag, ""), children, attributes, size)


class _Unit:
    """The types of a compilation unit, by their offset in it."""

    def __init__(
        self, raw: bytes, strings: bytes, start: int, end: int, table: dict[int, _Abbreviation]
    ) -> None:
        self.raw = raw
        self.strings = strings
        self.entries: dict[int, _Die] = {}
        wanted = {*_TYPES, *_NAMELESS}
        at, parents = start + 11, list[_Die | None]()
        while at < end:
            here = at
            code, at = _uleb(self.raw, at)
            if not code:
                if not parents:
                    break
                parents.pop()
                continue
            form = table[code]
            die: _Die | None = None
            if form.tag in wanted:
                die = _Die(form.tag, {})
                for name, kind in form.attributes:
                    die.values[name], at = self._value(kind, at)
                self.entries[here - start] = die
                if parents and parents[-1] is not None:
                    parents[-1].children.append(die)
            elif form.size >= 0:
                at += form.size
            else:
                for _, kind in form.attributes:
                    _, at = self._value(kind, at)
            if form.children:
                parents.append(die)

    def _value(self, form: str, at: int) -> tuple[Any, int]:
        size = _FIXED.get(form, -1)
        if form == "DW_FORM_strp":
            text = int.from_bytes(self.raw[at : at + 4], "little")
            return self.strings[text : self.strings.index(b"\0", text)].decode("utf-8", "replace"), at + 4
        if form == "DW_FORM_flag_present":
            return True, at
        if size >= 0:
            return int.from_bytes(self.raw[at : at + size], "little"), at + size
        if form in ("DW_FORM_udata", "DW_FORM_ref_udata"):
            return _uleb(self.raw, at)
        if form == "DW_FORM_sdata":
            value, end = _uleb(self.raw, at)
            bits = 7 * (end - at)
            return value - (1 << bits) if value >> bits - 1 else value, end
        if form == "DW_FORM_string":
            end = self.raw.index(b"\0", at)
            return self.raw[at:end].decode("utf-8", "replace"), end + 1
        if form in ("DW_FORM_exprloc", "DW_FORM_block"):
            length, at = _uleb(self.raw, at)
            return None, at + length
        if form in _BLOCKS:
            width = _BLOCKS[form]
            return None, at + width + int.from_bytes(self.raw[at : at + width], "little")
        raise ValueError(f"unknown form {form}")

    # ---- types ---------------------------------------------------------------------------------

    def members(self, die: _Die, base: int = 0, depth: int = 0) -> dict[str, Member]:
        """Members of a structure, with those of nameless structures in it."""
        if depth > _DEPTH_MAX:
            raise ValueError("structures are nested too deeply")
        out: dict[str, Member] = {}
        for child in die.children:
            if child.tag != "DW_TAG_member":
                continue
            kind = self._type(child)
            offset = base + child.number("DW_AT_data_member_location")
            if child.name:
                out[child.name] = Member(offset, *self._size(kind, 0))
            elif kind is not None and kind.tag in _STRUCTURES:
                out |= self.members(kind, offset, depth + 1)
        return out

    def _type(self, die: _Die) -> _Die | None:
        """The type of an entry, without typedef, const and volatile; None for void."""
        for _ in range(_DEPTH_MAX):
            found = self.entries.get(die.number("DW_AT_type", -1))
            if found is None or found.tag not in _NAMELESS:
                return found
            die = found
        raise ValueError("a type refers to itself")

    def _size(self, kind: _Die | None, depth: int) -> tuple[int, int, str]:
        """(bytes, elements, name of the structure) of a type."""
        if kind is None or depth > _DEPTH_MAX:
            return 0, 1, ""
        if kind.tag == "DW_TAG_pointer_type":
            return kind.number("DW_AT_byte_size", 8), 1, ""
        if kind.tag == "DW_TAG_array_type":
            size, _, name = self._size(self._type(kind), depth + 1)
            count = 1
            for child in kind.children:
                if child.tag == "DW_TAG_subrange_type":
                    count *= child.number("DW_AT_count", child.number("DW_AT_upper_bound", -1) + 1)
            return size * count, count, name
        return kind.number("DW_AT_byte_size"), 1, kind.name if kind.tag in _STRUCTURES else ""


__all__ = ["Layouts", "Member", "Structure", "UnknownStructure"]
