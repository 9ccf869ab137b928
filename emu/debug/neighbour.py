"""The .json beside an image: what memory alone does not tell (the shape of recorded handovers)."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.boot import RAM, Range
from emu.debug.output import clean
from emu.debug.struct_pages import StructPages
from kho.check import MOMENTS, Segment
from kho.setup_data import ScratchArea

NEIGHBOUR_BYTES_MAX = 1 << 20
SUFFIXES = (".zst", ".raw", ".pruned", ".img", ".bin", ".elf", ".core", ".dump", ".dmp", ".mem")


@dataclass
class Neighbour:
    """What the .json beside an image says about it (the shape of recorded handovers). Everything is
    optional.
    """

    path: Path
    fdt: int | None = None
    scratch_list: int | None = None
    scratch: list[ScratchArea] = field(default_factory=list)
    e820: list[Range] = field(default_factory=list)
    moment: str | None = None
    old_scratch: list[ScratchArea] | None = None
    segments: list[Segment] | None = None
    control_pages: list[int] | None = None
    earlier_scratch: list[ScratchArea] | None = None
    received_number: int | None = None
    contents: dict[str, str] = field(default_factory=dict)
    """sha256 of each file at J, keyed "session/0xtoken" """
    struct_pages: StructPages | None = None

    @property
    def ram(self) -> list[tuple[int, int]]:
        """(start, end) of what the memory map calls RAM."""
        return [(r.start, r.start + r.size) for r in self.e820 if r.kind == RAM]


def read_neighbour(path: Path) -> Neighbour | None:
    """The .json beside an image, if there is one that describes a handover; others are ignored."""
    for candidate in _neighbour_names(path.resolve()):
        try:
            if not candidate.is_file() or candidate.stat().st_size > NEIGHBOUR_BYTES_MAX:
                continue
            document = json.loads(candidate.read_text("utf-8"))
            if isinstance(document, dict) and ("kho_fdt_pa" in document or "scratch" in document):
                return _neighbour(candidate, document)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError,
                RecursionError) as error:  # fmt: skip
            print(f"luemu: {candidate} is ignored: {clean(str(error))}", file=sys.stderr)
    return None


def _neighbour_names(path: Path) -> list[Path]:
    names = [path.with_name(path.name + ".json")]
    while path.suffix in SUFFIXES and path.stem:
        path = path.with_suffix("")
        names.append(path.with_name(path.name + ".json"))
    return names


def _neighbour(path: Path, document: dict[str, Any]) -> Neighbour:
    found = Neighbour(path)
    if document.get("kho_fdt_pa") is not None:
        found.fdt = _integer(document["kho_fdt_pa"])
    if document.get("scratch_list_pa") is not None:
        found.scratch_list = _integer(document["scratch_list_pa"])
    found.scratch = _areas(document.get("scratch") or [])
    if document.get("old_scratch") is not None:
        found.old_scratch = _areas(document["old_scratch"])
    if document.get("segments") is not None:
        found.segments = [Segment(_integer(a), _integer(s)) for a, s in document["segments"]]
        found.control_pages = [_integer(a) for a in document.get("control_pages") or []]
    if document.get("earlier_scratch") is not None:
        found.earlier_scratch = _areas(document["earlier_scratch"])
    if document.get("received_number") is not None:
        found.received_number = _integer(document["received_number"])
    found.contents = {str(k): str(v) for k, v in (document.get("expected_sha256") or {}).items()}
    if document.get("struct_pages") is not None:
        found.struct_pages = StructPages.parse(document["struct_pages"])
    found.e820 = [
        Range(_integer(e["addr"]), _integer(e["size"]), _integer(e["type"]))
        for e in document.get("e820") or []
    ]
    when = str(document.get("moment") or document.get("when") or "")
    if when in MOMENTS:
        found.moment = when
    elif "machine_kexec" in when:
        found.moment = "J"
    elif "kho_populate" in when or "kho_memory_init" in when:
        found.moment = "K"
    return found


def _areas(pairs: list[Any]) -> list[ScratchArea]:
    return [ScratchArea(_integer(phys), _integer(size)) for phys, size in pairs]


def _integer(value: Any) -> int:
    number = int(value, 0) if isinstance(value, str) else int(value)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} is no address or size")
    return number


__all__ = ["Neighbour", "read_neighbour"]
