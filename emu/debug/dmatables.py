"""All that the remapping tables in memory grant, without registers, caches or faults: `read_tables`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from emu.devices import vtd_tables as tables
from emu.memory import PAGE, Memory

TABLES_MAX = 1 << 16
_ADDRESS = (1 << tables.HOST_BITS) - PAGE


@dataclass
class Tables:
    """Who could write where, and where the tables are."""

    reach: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(requester, first IOVA, physical address, bytes) that may be written"""
    pages: set[int] = field(default_factory=set)
    """addresses of root, context and second-level tables"""


def read_tables(memory: Memory, root_phys: int) -> Tables:
    """Everything below a root table."""
    out = Tables()
    root = _table(memory, root_phys)
    if root is None:
        return out
    out.pages.add(root_phys)
    for bus in np.flatnonzero(root[::2] & np.uint64(1)).tolist():
        at = int(root[2 * bus]) & _ADDRESS
        contexts = _table(memory, at)
        if contexts is None:
            continue
        out.pages.add(at)
        for devfn in np.flatnonzero(contexts[::2] & np.uint64(1)).tolist():
            low, high = int(contexts[2 * devfn]), int(contexts[2 * devfn + 1])
            if low >> 2 & 3 == 0 and high & 7 in (1, 2):
                levels = 3 if high & 7 == 1 else 4
                spans = _spans(memory, low & _ADDRESS, levels, 0, out.pages)
                out.reach += [(bus << 8 | devfn, *span) for span in _joined(spans)]
    return out


def _spans(
    memory: Memory, table: int, level: int, iova: int, pages: set[int]
) -> Iterator[tuple[int, int, int]]:
    """(IOVA, physical address, bytes) of what may be written below a table."""
    if len(pages) > TABLES_MAX:
        return
    entries = _table(memory, table)
    if entries is None:
        return
    pages.add(table)
    shift = 12 + 9 * (level - 1)
    for index in np.flatnonzero(entries & np.uint64(3)).tolist():
        entry, at = int(entries[index]), iova + (index << shift)
        if level == 1 or entry & 0x80:
            if entry & 2:
                yield at, entry & _ADDRESS & -(1 << shift), 1 << shift
        elif entry & _ADDRESS not in pages:
            yield from _spans(memory, entry & _ADDRESS, level - 1, at, pages)


def _table(memory: Memory, phys: int) -> npt.NDArray[np.uint64] | None:
    return memory.read(phys, PAGE).view("<u8") if memory.contains(phys, PAGE) else None


def _joined(spans: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Neighbours on both sides as one."""
    last: tuple[int, int, int] | None = None
    for iova, phys, size in spans:
        if last is not None and (last[0] + last[2], last[1] + last[2]) == (iova, phys):
            last = (last[0], last[1], last[2] + size)
            continue
        if last is not None:
            yield last
        last = (iova, phys, size)
    if last is not None:
        yield last


__all__ = ["TABLES_MAX", "Tables", "read_tables"]
