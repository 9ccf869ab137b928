"""Memory of a machine in files that other tools read: raw, zstd-compressed raw, or an ELF core.

A raw image holds guest-physical memory from address 0; what the guest never touched is a hole in
the file. Beside the image stands a `.json` that says where the FDT and the scratch list are.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import zstandard

from emu.boot import e820
from emu.files import is_regular, replacing
from emu.machine import Machine

_CHUNK = 1 << 20
_EHDR = 64
_PHDR = 56


def write(machine: Machine, path: Path, known: Mapping[str, Any] | None = None) -> None:
    """Write RAM to ``path`` (format by its suffix: .zst, .elf or .core, else raw) and a .json beside it.

    ``known``: what is to be said there of the handover. Raises ImageError if it cannot be written.
    """
    with replacing(path) as part:
        if path.suffix == ".zst":
            with part.open("wb") as out, zstandard.ZstdCompressor(level=1).stream_writer(out) as packed:
                _stream(machine, packed)
        elif path.suffix in (".elf", ".core"):
            _elf(machine, part)
        else:
            _raw(machine, part)
    if not is_regular(path):  # a pipe: there is no beside
        return
    describe(machine, beside(path), known)


def beside(path: Path) -> Path:
    """The .json of a dump: its name without the suffixes that say what it is."""
    name = path.name.removesuffix(".zst").removesuffix(path.suffix)
    found = path.with_name((name.removesuffix(".raw") or path.name) + ".json")
    return found if found != path else beside_saved(path)


def beside_saved(path: Path) -> Path:
    """The .json of a saved machine."""
    return path.with_name(path.name + ".json")


def describe(machine: Machine, path: Path, known: Mapping[str, Any] | None = None) -> None:
    """Write the .json that stands beside a dump or a saved machine. Raises ImageError."""
    with replacing(path) as part:
        part.write_text(json.dumps({**_facts(machine), **(known or {})}, indent=1) + "\n")


def _facts(machine: Machine) -> dict[str, Any]:
    memory = machine.memory
    return {
        "mem": f"{memory.size >> 20}M",
        "ticks": machine.ticks,
        "instructions": machine.instructions,
        "e820": [{"addr": r.start, "size": r.size, "type": r.kind} for r in e820(memory.size, memory.low)],
    }


def _end(machine: Machine) -> int:
    return machine.memory.ranges[-1][1]


def _raw(machine: Machine, path: Path) -> None:
    with path.open("wb") as f:
        f.truncate(_end(machine))
        for start, end in machine.memory.populated():
            for at in range(start, end, _CHUNK):
                f.seek(at)
                f.write(machine.memory.read(at, min(_CHUNK, end - at)).data)


def _stream(machine: Machine, out: Any) -> None:
    zeros = bytes(_CHUNK)
    position = 0

    def skip_to(target: int) -> None:
        nonlocal position
        while position < target:
            step = min(_CHUNK, target - position)
            out.write(zeros[:step])
            position += step

    for start, end in machine.memory.populated():
        skip_to(start)
        for at in range(start, end, _CHUNK):
            out.write(machine.memory.read(at, min(_CHUNK, end - at)).data)
        position = end
    skip_to(_end(machine))


def _elf(machine: Machine, path: Path) -> None:
    ranges = machine.memory.ranges
    offset = (_EHDR + _PHDR * len(ranges) + 4095) & ~4095
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        4,
        62,
        1,
        0,
        _EHDR,
        0,
        0,
        _EHDR,
        _PHDR,
        len(ranges),
        0,
        0,
        0,
    )
    table, places = b"", []
    for start, end in ranges:
        places.append((start, end, offset))
        table += struct.pack("<IIQQQQQQ", 1, 7, offset, start, start, end - start, end - start, 4096)
        offset += end - start
    with path.open("wb") as f:
        f.truncate(offset)
        f.write(head + table)
        _fill(f, machine, places)


def _fill(f: IO[bytes], machine: Machine, places: Sequence[tuple[int, int, int]]) -> None:
    for start, end in machine.memory.populated():
        for low, high, offset in places:
            if low <= start < high:
                for at in range(start, min(end, high), _CHUNK):
                    f.seek(offset + at - low)
                    f.write(machine.memory.read(at, min(_CHUNK, min(end, high) - at)).data)
