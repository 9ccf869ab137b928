"""A guest of two bytes, for what the commands do around a machine."""

from __future__ import annotations

import struct
from pathlib import Path

_ENTRY = 0x100000
_PVH_NOTE = 18  # XEN_ELFNOTE_PHYS32_ENTRY


def endless_loop(path: Path) -> Path:
    """An ELF kernel, started by its PVH note, that does nothing for ever."""
    code = b"\xeb\xfe"
    note = struct.pack("<III4sI", 4, 4, _PVH_NOTE, b"Xen\0", _ENTRY)
    at = 64 + 2 * 56
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, _ENTRY, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, at + len(note), _ENTRY, _ENTRY, len(code), len(code), 1)
    notes = struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(note), len(note), 4)
    path.write_bytes(head + load + notes + note + code)
    return path
