"""ELF files put together by hand, for what reads probes and symbols."""

from __future__ import annotations

import struct
from collections.abc import Sequence

CODE_AT, CODE_SIZE = 0x1000, 0x100


def note(
    address: int,
    provider: str = "p",
    name: str = "n",
    arguments: str = "",
    *,
    base: int = 0,
    semaphore: int = 0,
    owner: bytes = b"stapsdt\0",
    kind: int = 3,
) -> bytes:
    """A note of a probe."""
    strings = b"".join(s.encode() + b"\0" for s in (provider, name, arguments))
    return raw_note(struct.pack("<QQQ", address, base, semaphore) + strings, owner, kind)


def raw_note(contents: bytes, owner: bytes = b"stapsdt\0", kind: int = 3) -> bytes:
    """A note with these contents."""
    head = struct.pack("<III", len(owner), len(contents), kind)
    return head + owner + bytes(-len(owner) % 4) + contents + bytes(-len(contents) % 4)


def elf(
    notes: bytes | None = b"",
    *,
    symbols: dict[str, int] | None = None,
    sections: Sequence[tuple[str, int, bytes]] = (),
) -> bytes:
    """An executable with 256 bytes of code at 0x1000, notes, symbols, and more sections (name, address,
    contents)."""
    names = bytearray(b"\0")
    strings = bytearray(b"\0")
    table = bytes(24)
    for symbol, value in (symbols or {}).items():
        table += struct.pack("<IBBHQQ", len(strings), 0x11, 0, 1, value, 8)
        strings += symbol.encode() + b"\0"
    parts = [(".text", 1, 6, CODE_AT, b"\x90" * CODE_SIZE, 0, 0)]
    if notes is not None:
        parts.append((".note.stapsdt", 7, 0, 0, notes, 0, 0))
    parts += [(name, 1, 2, address, data, 0, 0) for name, address, data in sections]
    parts.append((".symtab", 2, 0, 0, table, len(parts) + 2, 24))
    parts.append((".strtab", 3, 0, 0, bytes(strings), 0, 0))
    heads, body, at = [bytes(64)], b"", 64
    for name, kind, flags, address, data, link, entry in [*parts, (".shstrtab", 3, 0, 0, b"", 0, 0)]:
        number = len(names)
        names += name.encode() + b"\0"
        contents = bytes(names) if name == ".shstrtab" else data
        heads.append(
            struct.pack("<IIQQQQIIQQ", number, kind, flags, address, at, len(contents), link, 1, 1, entry)
        )
        body += contents
        at += len(contents)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, CODE_AT, 0, at, 0, 64, 0, 0, 64,
                       len(heads), len(heads) - 1)  # fmt: skip
    return head + body + b"".join(heads)
