"""Static probes that a kernel has compiled in: the notes of an ELF's `.note.stapsdt`, and their arguments.

A probe is a `nop`; its note says where that is, and in the assembler's own words where each argument is at
that moment. Reads the file only; `Probe.read` looks into a stopped machine.

Format: SystemTap's SDT notes, version 3 (note type 3 of "stapsdt"): three words of 8 bytes (the probe's
address, the address that `.stapsdt.base` was linked to, the semaphore's address), then three strings
(provider, name, arguments). An argument is `N@OPERAND`: N its bytes, negative if it is signed; OPERAND is in
AT&T syntax.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.elffile import ELFFile

from emu.debug import guest
from emu.debug.elf_symbols import symbols
from emu.debug.symbols import DAMAGE
from emu.errors import AddressError, ImageError
from emu.files import read_file
from emu.machine import Machine

SECTION, BASE_SECTION, BASE_SYMBOL = ".note.stapsdt", ".stapsdt.base", "_stapsdt_base"
_OWNER, _TYPE = b"stapsdt\0", 3
_MASK = (1 << 64) - 1
_SHF_EXECINSTR = 4
_LONG_MODE, _PAGE = 0x400, 4096


class ProbeError(ImageError):
    """A note of a probe is malformed, or says where an argument is in a way that cannot be understood."""

    kind = "bad-probe"


# ---- operands --------------------------------------------------------------------------------------------


def _registers() -> dict[str, tuple[str, int, int]]:
    """Every name of a general register: (64-bit register, lowest bit, bits)."""
    out: dict[str, tuple[str, int, int]] = {"rip": ("rip", 0, 64), "eip": ("rip", 0, 32)}
    for letter in "abcd":
        out |= {f"{letter}l": (f"r{letter}x", 0, 8), f"{letter}h": (f"r{letter}x", 8, 8)}
    for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp"):
        out |= {f"r{name}": (f"r{name}", 0, 64), f"e{name}": (f"r{name}", 0, 32), name: (f"r{name}", 0, 16)}
        if name[1] != "x":
            out[f"{name}l"] = (f"r{name}", 0, 8)
    for n in range(8, 16):
        out |= {f"r{n}{suffix}": (f"r{n}", 0, bits)
                for suffix, bits in (("", 64), ("d", 32), ("w", 16), ("b", 8))}  # fmt: skip
    return out


REGISTERS = _registers()
_ARGUMENT = re.compile(r"(?:(?P<size>-?[1248])@)?(?P<operand>.+)", re.DOTALL)
_MEMORY = re.compile(r"(?:%(?P<segment>[fg]s):)?(?P<displacement>[^()%$]*)(?:\((?P<inside>[^()]*)\))?")
_TERM = re.compile(r"\s*([+-]?)\s*(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*|[A-Za-z_.$][\w.$@]*)\s*")


@dataclass(frozen=True)
class Register:
    """``N@%reg``: bits of a register."""

    name: str
    shift: int
    bits: int


@dataclass(frozen=True)
class Constant:
    """``N@$number``, ``N@$symbol+number``."""

    value: int


@dataclass(frozen=True)
class InMemory:
    """``N@disp(base,index,scale)``, all parts optional; ``segment`` is "fs", "gs" or empty."""

    displacement: int
    base: str = ""
    index: str = ""
    scale: int = 1
    segment: str = ""

    def address(self, registers: Mapping[str, int]) -> int:
        """The linear address, by these registers."""
        at = self.displacement
        if self.base:
            at += registers[self.base]
        if self.index:
            at += registers[self.index] * self.scale
        if self.segment:
            at += registers[f"{self.segment}.base"]
        return at & _MASK


@dataclass(frozen=True)
class Argument:
    """One argument: where it is, how many bytes, whether they are signed. ``text`` is the note's own."""

    operand: Register | Constant | InMemory
    size: int
    signed: bool
    text: str

    @classmethod
    def parse(cls, text: str, symbols: Mapping[str, int], where: str = "") -> Argument:
        """From a note. Symbols are replaced by their addresses. Raises ProbeError."""
        match = _ARGUMENT.fullmatch(text)
        if match is None or "@" in match["operand"].split("(")[0].lstrip("$")[:3]:
            raise ProbeError(f'the argument "{text}" has not the form N@OPERAND', where)
        operand = _operand(match["operand"], symbols, text, where)
        size = int(match["size"] or 0)
        if not size:
            size = operand.bits // 8 if isinstance(operand, Register) else 8
        return cls(operand, abs(size), size < 0, text)

    def read(self, machine: Machine, registers: Mapping[str, int]) -> int:
        """Its value in a stopped machine with these registers. Raises guest.NotMapped."""
        o = self.operand
        if isinstance(o, Register):
            value = registers[o.name] >> o.shift & (1 << o.bits) - 1
        elif isinstance(o, Constant):
            value = o.value
        else:
            value = _load(machine, registers, o.address(registers), self.size)
        bits = 8 * self.size
        value &= (1 << bits) - 1
        return value - (1 << bits) if self.signed and value >> bits - 1 else value


def _load(machine: Machine, registers: Mapping[str, int], address: int, size: int) -> int:
    """What `guest.read` reads, without asking the CPU again for the registers that are there."""
    cr3 = registers["cr3"] if registers["cr0"] >> 31 and registers["efer"] & _LONG_MODE else None
    at = address & _PAGE - 1
    if cr3 is None or at + size > _PAGE:
        return int.from_bytes(guest.read(machine, address, size), "little")
    phys = guest.translate(machine, address, cr3)
    try:
        return int.from_bytes(machine.memory.copy(phys, size), "little")
    except AddressError:
        raise guest.NotMapped(f"is mapped to {phys:#x}, which is not RAM", f"{address:#x}") from None


def _operand(
    text: str, symbols: Mapping[str, int], argument: str, where: str
) -> Register | Constant | InMemory:
    if text.startswith("%") and ":" not in text:
        known = REGISTERS.get(text[1:])
        if known is None:
            raise ProbeError(f'the argument "{argument}" is in an unknown register', where)
        return Register(*known)
    if text.startswith("$"):
        return Constant(_sum(text[1:], symbols, argument, where)[0])
    match = _MEMORY.fullmatch(text)
    if match is None or not (match["displacement"] or match["inside"] is not None):
        raise ProbeError(f'the argument "{argument}" is no x86 operand', where)
    displacement, symbolic = 0, False
    if match["displacement"].strip():
        displacement, symbolic = _sum(match["displacement"], symbols, argument, where)
    segment = match["segment"] or ""
    if match["inside"] is None:
        return InMemory(displacement, segment=segment)
    parts = [p.strip() for p in match["inside"].split(",")]
    if not 1 <= len(parts) <= 3 or not any(parts):
        raise ProbeError(f'the argument "{argument}" is no x86 operand', where)
    names = []
    for part in parts[:2]:
        known = REGISTERS.get(part.removeprefix("%")) if part.startswith("%") else None
        if part and (known is None or known[2] != 64):
            raise ProbeError(f'the argument "{argument}" is addressed by an unknown register', where)
        names.append(known[0] if known is not None else "")
    base, index = names[0], names[1] if len(names) > 1 else ""
    scale = parts[2] if len(parts) == 3 else "1"
    if scale not in ("1", "2", "4", "8") or index in ("rsp", "rip") or (base == "rip" and index):
        raise ProbeError(f'the argument "{argument}" is no x86 operand', where)
    if base == "rip" and symbolic:
        base = ""  # the assembler's "symbol(%rip)" is the symbol
    return InMemory(displacement, base, index, int(scale), segment)


def _sum(text: str, symbols: Mapping[str, int], argument: str, where: str) -> tuple[int, bool]:
    """Value of a sum of numbers and symbols, and whether there is a symbol in it."""
    total, at, symbolic = 0, 0, False
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None or (at and not match[1]):
            raise ProbeError(f'the argument "{argument}" has a number that is none', where)
        word = match[2]
        if word[0].isdigit():
            value = int(word, 16) if word[:2] in ("0x", "0X") else int(word, 8 if word[0] == "0" else 10)
        elif word in symbols:
            value, symbolic = symbols[word], True
        else:
            raise ProbeError(f'the argument "{argument}" has the unknown symbol "{word}"', where)
        total += -value if match[1] == "-" else value
        at = match.end()
    if not at:
        raise ProbeError(f'the argument "{argument}" has a number that is none', where)
    return total, symbolic


def split_arguments(text: str) -> list[str]:
    """Arguments of a note: separated by white space that is not inside parentheses."""
    return re.findall(r"(?:[^\s()]|\([^()]*\)?|\))+", text)


# ---- notes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """One place in the code that announces an event."""

    provider: str
    name: str
    address: int
    arguments: tuple[Argument, ...] = ()
    semaphore: int = 0

    @property
    def event(self) -> str:
        """``provider:name``."""
        return f"{self.provider}:{self.name}"

    def read(self, machine: Machine, registers: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Values of the arguments in a machine that is stopped at the probe. Raises guest.NotMapped."""
        if not self.arguments:
            return ()
        registers = machine.cpus[0].registers() if registers is None else registers
        return tuple(a.read(machine, registers) for a in self.arguments)


@dataclass(frozen=True)
class Probes:
    """All probes of an ELF file, by event. One event may be announced from several places."""

    sites: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)

    def __contains__(self, event: str) -> bool:
        return event in self.sites

    def __iter__(self) -> Iterator[Probe]:
        return (probe for sites in self.sites.values() for probe in sites)

    def at(self, event: str) -> tuple[Probe, ...]:
        """Where an event is announced, in the order of the file; empty if nowhere."""
        return self.sites.get(event, ())

    @classmethod
    def read(cls, path: Path) -> Probes:
        """Probes of an ELF file, none if it has no notes. Raises ImageError, ProbeError."""
        return cls.parse(read_file(path), str(path))

    @classmethod
    def parse(cls, data: bytes, where: str = "") -> Probes:
        """The same from the bytes of the file."""
        try:
            elf = ELFFile(io.BytesIO(data))
            notes = elf.get_section_by_name(SECTION)
            if notes is None:
                return cls()
            raw = notes.data()
            addresses: dict[str, int] = {}
            for symbol in symbols(elf):
                addresses.setdefault(symbol.name, symbol.value)
            code = [(s["sh_addr"], s["sh_addr"] + s["sh_size"]) for s in elf.iter_sections()
                    if s["sh_flags"] & _SHF_EXECINSTR]  # fmt: skip
            base_section = elf.get_section_by_name(BASE_SECTION)
            base = base_section["sh_addr"] if base_section is not None else addresses.get(BASE_SYMBOL)
        except DAMAGE as e:
            raise ImageError(f"malformed ELF file: {e}", where) from None
        sites: dict[str, list[Probe]] = {}
        for at, note in _notes(raw, where):
            probe = _probe(note, base, addresses, f"{where}: note at {at:#x}")
            if not any(low <= probe.address < high for low, high in code):
                message = f"the probe {probe.event} is at {probe.address:#x}, where no code is"
                raise ProbeError(message, f"{where}: note at {at:#x}")
            sites.setdefault(probe.event, []).append(probe)
        return cls({event: tuple(found) for event, found in sites.items()})


def _notes(raw: bytes, where: str) -> Iterator[tuple[int, bytes]]:
    """(offset, contents) of the notes of probes; other owners' notes are passed over."""
    at = 0
    while at < len(raw):
        if at + 12 > len(raw):
            if not any(raw[at:]):
                return  # what aligns the section
            raise ProbeError("is cut off in its header", f"{where}: note at {at:#x}")
        name_size, size, kind = struct.unpack_from("<III", raw, at)
        if not (name_size or size or kind):
            at += 4
            continue
        name = at + 12
        contents = name + (name_size + 3 & ~3)
        end = contents + size
        if end > len(raw):
            raise ProbeError("is cut off", f"{where}: note at {at:#x}")
        if raw[name : name + name_size] == _OWNER:
            if kind != _TYPE:
                message = f"is of type {kind}; version 3 of the format has type {_TYPE}"
                raise ProbeError(message, f"{where}: note at {at:#x}")
            yield at, raw[contents:end]
        at = end + 3 & ~3


def _probe(note: bytes, base: int | None, symbols: Mapping[str, int], where: str) -> Probe:
    if len(note) < 24 + 3:
        raise ProbeError(f"has {len(note)} bytes, too few for a probe", where)
    address, linked_base, semaphore = struct.unpack_from("<QQQ", note)
    fields = note[24:].split(b"\0")
    if len(fields) < 4:
        raise ProbeError("has not three strings", where)
    try:
        provider, name, arguments = (f.decode("ascii") for f in fields[:3])
    except UnicodeDecodeError:
        raise ProbeError("has a string that is not ASCII", where) from None
    if any(b"".join(fields[3:])):
        raise ProbeError("has something behind its strings", where)
    if not provider or not name:
        raise ProbeError("has no provider or no name", where)
    # A file that was moved after linking (prelinked) keeps its notes as they were: how far it moved shows by
    # its base section.
    moved = base - linked_base if base is not None and linked_base else 0
    parsed = tuple(Argument.parse(a, symbols, where) for a in split_arguments(arguments))
    if semaphore:
        semaphore = semaphore + moved & _MASK
    return Probe(provider, name, address + moved & _MASK, parsed, semaphore)


__all__ = ["Argument", "Constant", "InMemory", "Probe", "ProbeError", "Probes", "Register", "split_arguments"]
