"""A kernel that is to run: by the name of one of the project's releases, or by the path of its image.

A kernel of the project has its ELF file beside the bzImage (old.bzImage, old.elf), with symbols, debug
information and probes; whether they belong together is checked. Of others, symbols are looked for as
`Symbols.beside` does. Reads files only.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

import kernels
from emu.boot import BzImage, Elf
from emu.debug.layout import Layouts
from emu.debug.sdt import Probes
from emu.debug.symbols import DAMAGE, Symbols
from emu.errors import ImageError
from emu.files import read_file
from kernels import bzimage

RELEASES = ("old", "new")
"""The project's releases, by name."""
FORMATS = ("kho", "luo", "memfd")
"""Formats whose versions a kernel accepts or refuses."""
_OWN_EVENT = "kernel:start"
_OWN_VERSION = "(luemu)"
_STRING_MAX = 64
_ALLOCATED, _CODE, _CODE_ONLY = 2, 5, 4
"""Flags of a section: takes memory; writable or executable, executable and not writable."""


def kernel_name(text: str) -> Path | str:
    """A release by its name, anything else is a path (./old for a file of that name)."""
    return text if text in RELEASES else Path(text)


@dataclass(frozen=True, eq=False)
class Kernel:
    """``name`` is what it was called by; ``image`` what is booted; ``elf`` the bytes of its ELF file, empty
    if there is none. ``own`` says that it is one of the project's, which announces events by probes."""

    name: str
    path: Path
    image: bytes
    elf: bytes = b""
    elf_path: Path | None = None
    symbols: Symbols | None = None
    probes: Probes = field(default_factory=Probes)
    own: bool = False

    @classmethod
    def open(cls, text: str | Path, symbols: Path | None = None, *, observe: bool = True) -> Kernel:
        """By name or path; ``symbols`` says where they are; without ``observe`` they are not looked for.
        Raises ImageError."""
        path = Path(text)
        if isinstance(text, str) and text in RELEASES:
            try:
                path = kernels.binary(f"{text}.bzImage")
            except FileNotFoundError as e:
                raise ImageError(str(e), text) from None
        image = read_file(path)
        if not observe:  # a kernel is booted as what it is, whether or not it is watched
            is_elf = image[:4] == b"\x7fELF"
            own = _OWN_EVENT in Probes.parse(image, str(path)) if is_elf else _is_own_image(image)
            return cls(str(text), path, image, own=own)
        elf_path = symbols
        if elf_path is None:
            elf_path = _elf_of(path, image)
        elf = b"" if elf_path is None else read_file(elf_path)
        if elf[:4] == b"\x7fELF" and elf_path is not None:
            probes = Probes.parse(elf, str(elf_path))
            if _OWN_EVENT in probes:
                if not _belong_together(image, elf):
                    raise ImageError(f"does not belong to the kernel {path}", str(elf_path))
                found = Symbols.read(elf_path)
                return cls(str(text), path, image, elf, elf_path, found, probes, own=True)
        if _is_own_image(image):
            message = "is a kernel of the project without its ELF file beside it: give --symbols"
            raise ImageError(message, str(path))
        if symbols is not None:
            return cls(str(text), path, image, symbols=Symbols.read(symbols))
        return cls(str(text), path, image, symbols=Symbols.beside(path))

    # ---- what it is ----------------------------------------------------------------------------

    @property
    def short(self) -> str:
        """Its name without directories, for messages."""
        return Path(self.name).name

    @property
    def release(self) -> str:
        """What it calls itself (`uname -r`), or an empty string where the image does not tell."""
        image = self.kexec_image if self.own else self.image
        return _version(image).partition(" ")[0]

    @property
    def kexec_image(self) -> bytes:
        """The bzImage that `kexec_file_load` takes; a foreign ELF file is left as it is."""
        if self.image[:4] != b"\x7fELF" or not self.own:
            return self.image
        try:
            return bzimage.bzimage(self.image)
        except bzimage.BzImageError as e:
            raise ImageError(str(e), str(self.path)) from None

    @cached_property
    def layouts(self) -> Layouts:
        """Layouts of its structures; none without an ELF file with debug information."""
        return Layouts(self.elf, str(self.elf_path or self.path))

    def accepts(self) -> dict[str, tuple[str, ...]]:
        """Versions of `FORMATS` that it takes from the kernel before it, as far as its ELF file tells."""
        elf, where = self.elf, self.elf_path
        if not elf and self.image[:4] == b"\x7fELF":
            elf, where = self.image, self.path
        if not elf and (vmlinux := self.path.with_name("vmlinux")).is_file():
            elf, where = read_file(vmlinux), vmlinux
        return accepted_formats(elf, str(where or self.path)) if elf else {}


def accepted_formats(elf: bytes, where: str = "") -> dict[str, tuple[str, ...]]:
    """Versions of each format that the kernel in an ELF file accepts: what its symbols `kho_compatible` (…)
    hold, or else the strings of that form among its data. Raises ImageError."""
    out: dict[str, tuple[str, ...]] = {}
    try:
        file = ELFFile(io.BytesIO(elf))
        data = [
            s for s in file.iter_sections() if s["sh_flags"] & _ALLOCATED and s["sh_type"] == "SHT_PROGBITS"
        ]
        for kind, at in _compatible_symbols(file, elf).items():
            for section in data:
                if section["sh_addr"] <= at < section["sh_addr"] + section["sh_size"]:
                    text = section.data()[at - section["sh_addr"] :][:_STRING_MAX].partition(b"\0")[0]
                    out[kind] = (text.decode("ascii", "backslashreplace"),)
        missing = [kind for kind in FORMATS if kind not in out]
        if missing:
            out |= _strings(missing, (s.data() for s in data if s["sh_flags"] & _CODE != _CODE_ONLY))
    except DAMAGE as e:
        raise ImageError(f"malformed ELF file: {e}", where) from None
    return {kind: out[kind] for kind in FORMATS if kind in out}


def _compatible_symbols(file: Any, elf: bytes) -> dict[str, int]:
    wanted = {f"{kind}_compatible": kind for kind in FORMATS}
    table = file.get_section_by_name(".symtab")
    # a Linux has a hundred thousand symbols, and none of these
    if table is None or not any(b"\0%s\0" % name.encode() in elf for name in wanted):
        return {}
    return {wanted[s.name]: int(s["st_value"]) for s in table.iter_symbols() if s.name in wanted}


def _strings(kinds: Iterable[str], sections: Iterable[bytes]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    pattern = re.compile(rb"(?<![\w-])(%s)-v[0-9]+(?=\0)" % "|".join(kinds).encode())
    for data in sections:
        for match in pattern.finditer(data):
            found.setdefault(match[1].decode(), set()).add(match[0].decode())
    return {kind: tuple(sorted(versions)) for kind, versions in found.items()}


# ---- files -----------------------------------------------------------------------------------------------


def _elf_of(path: Path, image: bytes) -> Path | None:
    """The ELF file of a kernel: itself, the one beside it, or that of the release it is a copy of."""
    if image[:4] == b"\x7fELF":
        return path
    beside = path.with_suffix(".elf")
    if beside.is_file():
        return beside
    if _is_own_image(image):
        for elf in sorted(kernels.BIN_DIR.glob("*.elf")):
            if _belong_together(image, read_file(elf)):
                return elf
    return None


def _belong_together(image: bytes, elf: bytes) -> bool:
    """Whether a bzImage was made from an ELF file: what that loads is what it holds."""
    if image[:4] == b"\x7fELF":
        return image == elf
    try:
        start, contents, _ = bzimage.flatten(elf)
        parsed = BzImage.parse(image)
        Elf.parse(elf)
    except (bzimage.BzImageError, ImageError, ValueError, IndexError):
        return False
    return parsed.preferred == start and parsed.payload[: len(contents)] == contents


def _version(image: bytes) -> str:
    """The version string of a bzImage's header, empty if there is none."""
    if len(image) < 0x210 or image[0x202:0x206] != b"HdrS":
        return ""
    at = int.from_bytes(image[0x20E:0x210], "little")
    return image[0x200 + at :][:256].partition(b"\0")[0].decode("ascii", "replace") if at else ""


def _is_own_image(image: bytes) -> bool:
    return _version(image).endswith(_OWN_VERSION)


__all__ = ["FORMATS", "RELEASES", "Kernel", "accepted_formats", "kernel_name"]
