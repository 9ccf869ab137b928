"""Struct pages of a kernel in an image of memory, found without its symbols.

INV-35 speaks of them, and no format says where they are. Whoever writes the image knows the running kernel:
the .json beside it says where the arrays of struct pages lie, how large one is, and where in it `private` is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kho.abi import PAGE_SIZE
from kho.check import PageStates
from kho.memory import Reader, Words

ARRAYS_MAX = 1 << 16


@dataclass(frozen=True)
class StructPages:
    """``arrays`` of (physical address, page frame of the first, count), ascending by frame and disjoint."""

    size: int
    private_at: int
    arrays: Sequence[tuple[int, int, int]]

    def __post_init__(self) -> None:
        if self.size % 8 or self.private_at % 8 or not 0 <= self.private_at < self.size <= PAGE_SIZE:
            raise ValueError(f"a struct page of {self.size} bytes with its private at {self.private_at}")
        end = 0
        for phys, frame, count in self.arrays:
            if phys % 8 or count <= 0 or frame < end or phys + count * self.size > 1 << 64:
                raise ValueError(f"struct pages of frames {frame:#x} and on at {phys:#x} are not in order")
            end = frame + count
        if len(self.arrays) > ARRAYS_MAX or end > 1 << 52:
            raise ValueError("too many struct pages")

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"size": self.size, "private_at": self.private_at, "arrays": [list(a) for a in self.arrays]}

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> StructPages:
        """What `plain` gave. Raises ValueError, TypeError or KeyError."""
        arrays = [(int(phys), int(frame), int(count)) for phys, frame, count in document["arrays"]]
        return cls(int(document["size"]), int(document["private_at"]), arrays)

    def states(self, reader: Reader) -> PageStates:
        """For `kho.check`. A page that has no struct page here reads as 0."""
        return PageStates(lambda phys: self._private(reader, phys))

    def _private(self, reader: Reader, phys: Words) -> Words:
        out = np.zeros(len(phys), np.uint64)
        if not self.arrays:
            return out
        table = np.array(self.arrays, dtype=np.uint64)
        frames = phys >> np.uint64(12)
        row = np.searchsorted(table[:, 1], frames, side="right").astype(np.int64) - 1
        offset = frames - table[np.maximum(row, 0), 1]
        known = np.flatnonzero((row >= 0) & (offset < table[np.maximum(row, 0), 2]))
        at = table[row[known], 0] + offset[known] * np.uint64(self.size) + np.uint64(self.private_at)
        # A word never crosses a page: one read for all words of a page.
        pages, back = np.unique(at >> np.uint64(12), return_inverse=True)
        order = np.argsort(back, kind="stable")
        ends = np.cumsum(np.bincount(back, minlength=len(pages)))
        first = 0
        for page, end in zip(pages.tolist(), ends.tolist(), strict=True):
            mine = order[first:end]
            words = np.frombuffer(reader.read(page << 12, PAGE_SIZE).tobytes(), "<u8")
            out[known[mine]] = words[((at[mine] & np.uint64(4095)) >> np.uint64(3)).astype(np.intp)]
            first = end
        return out
