"""The set of preserved blocks as a lookup table, and the account of who owns what (INV-12).

Decoders ask here whether what they reach is preserved, and claim it with an owner. What nobody claims is
unexplained; what two claim is damaged; what is claimed but not preserved is lost in the next kernel.
All queries take and return numpy arrays and cost O(log n) a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kho.abi import PAGE_SHIFT, PAGE_SIZE, RADIX
from kho.memory import Words
from kho.radix import Orders, encode_keys

Flags = NDArray[np.bool_]


@dataclass
class Claimed:
    """Answer to a claim, one flag a block: it is preserved exactly like that; somebody has claimed
    it before.
    """

    preserved: Flags
    twice: Flags


@dataclass
class PreservedSet:
    """Blocks by ascending key, as the tree gives them."""

    phys: Words
    order: Orders
    owners: list[str] = field(default_factory=lambda: [""])

    # Each of these costs as much as reading the tree, so none is made before somebody asks.

    @cached_property
    def keys(self) -> Words:
        """The key of each block, ascending."""
        return encode_keys(self.phys, self.order)

    @cached_property
    def _owner(self) -> NDArray[np.int32]:
        return np.zeros(len(self.phys), dtype=np.int32)

    @cached_property
    def _by_phys(self) -> NDArray[np.int64]:
        return np.argsort(self.phys, kind="stable").astype(np.int64, copy=False)

    @cached_property
    def _start(self) -> Words:
        return self.phys[self._by_phys]

    @cached_property
    def _end(self) -> Words:
        return self._start + (np.uint64(PAGE_SIZE) << self.order[self._by_phys].astype(np.uint64))

    @cached_property
    def _reach(self) -> Words:
        """With overlapping blocks, the end of the furthest-reaching block so far is what counts."""
        return np.maximum.accumulate(self._end) if len(self._end) else self._end

    @cached_property
    def _cover(self) -> tuple[Words, Words]:
        """What all blocks cover together, as (start, end) of pieces that do not touch."""
        if not len(self._start):
            return self._start, self._end
        edges = np.flatnonzero(self._start[1:] > self._reach[:-1])
        return self._start[np.append(0, edges + 1)], self._reach[np.append(edges, len(self._start) - 1)]

    def __len__(self) -> int:
        return len(self.phys)

    @property
    def bytes(self) -> int:
        """Bytes of all blocks (those that overlap count twice)."""
        return sum(count * PAGE_SIZE << order for order, count in self.count_by_order().items())

    def count_by_order(self) -> dict[int, int]:
        """How many blocks there are of each order."""
        return {order: count for order, count in enumerate(np.bincount(self.order).tolist()) if count}

    def index(self, phys: Words, order: Orders | int) -> NDArray[np.int64]:
        """Position of each block (phys, order), -1 where it is not preserved exactly like that."""
        if not len(self.keys):
            return np.full(len(phys), -1, dtype=np.int64)
        keys = encode_keys(phys, order)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        found = self.keys[at] == keys
        if len(phys):
            aligned = phys % (np.uint64(PAGE_SIZE) << np.broadcast_to(np.uint8(0) + order, phys.shape)) == 0
            found &= aligned
        return np.where(found, at, -1)

    def has(self, phys: int, order: int = 0) -> bool:
        """Whether the block is preserved exactly like that."""
        if order == 0:
            return self._page_index(phys) >= 0
        return bool(self.index(np.array([phys], dtype=np.uint64), order)[0] >= 0)

    def orders_at(self, phys: Words) -> NDArray[np.int64]:
        """Order of the block that begins at each address, -1 where none does; the smallest if there are
        several.
        """
        if not len(self._start):
            return np.full(len(phys), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._start, phys, side="right") - 1, len(self._start) - 1)
        # the sort is stable and keys have the highest orders first, so the last of equals is the smallest
        order = self.order[self._by_phys[np.maximum(at, 0)]].astype(np.int64)
        return np.where((at >= 0) & (self._start[np.maximum(at, 0)] == phys), order, -1)

    def covers(self, start: int, end: int) -> bool:
        """Whether every byte of [start, end) is in preserved blocks."""
        return not self.gaps(start, end, 1)

    def gaps(self, start: int, end: int, count_max: int = 16) -> list[tuple[int, int]]:
        """The first parts of [start, end) that no preserved block has, as (start, end) pairs."""
        found: list[tuple[int, int]] = []
        at = start
        # the first piece of covered memory that ends after `start`
        starts, ends = self._cover
        index = int(ends.searchsorted(np.uint64(min(start, (1 << 64) - 1)), side="right"))
        while at < end and len(found) < count_max:
            low = int(starts[index]) if index < len(starts) else end
            if low > at:
                found.append((at, min(low, end)))
            if index >= len(starts):
                break
            at = max(at, int(ends[index]))
            index += 1
        return found

    @cached_property
    def overlapping(self) -> bool:
        """Whether any two blocks share a page."""
        return len(self._start) > 1 and bool((self._start[1:] < self._reach[:-1]).any())

    def overlaps(self, count_max: int = 1000) -> list[tuple[int, int, int]]:
        """(phys, order, phys of an earlier block) of blocks that begin inside another block, and how many."""
        if len(self._start) < 2:
            return []
        inside = np.flatnonzero(self._start[1:] < self._reach[:-1]) + 1
        out = []
        for index in inside[:count_max].tolist():
            out.append((
                int(self._start[index]), int(self.order[self._by_phys[index]]), int(self._start[index - 1])
            ))  # fmt: skip
        return out

    def touched(self, phys: Words) -> Flags:
        """For each address whether it is inside a preserved block."""
        if not len(self._start):
            return np.zeros(len(phys), dtype=np.bool_)
        at = np.searchsorted(self._start, phys, side="right") - 1
        return np.asarray((at >= 0) & (self._reach[np.maximum(at, 0)] > phys), dtype=np.bool_)

    def intersecting(self, start: int, end: int) -> NDArray[np.int64]:
        """Positions of the blocks that share a byte with [start, end)."""
        if start >= end or not len(self._start):
            return np.empty(0, dtype=np.int64)
        last = int(np.searchsorted(self._start, np.uint64(min(end, (1 << 64) - 1)), side="left"))
        first = int(np.searchsorted(self._reach[:last], np.uint64(start), side="right"))
        hit = np.arange(first, last)
        return np.asarray(self._by_phys[hit[self._end[hit] > np.uint64(start)]], dtype=np.int64)

    # --- who owns what --------------------------------------------------------------------------------------

    def owner(self, label: str) -> int:
        """A number for an owner, to claim with."""
        self.owners.append(label)
        return len(self.owners) - 1

    def claim(self, owner: int, phys: Words, order: Orders | NDArray[np.int64] | int) -> Claimed:
        """Claim exactly these blocks."""
        orders = np.broadcast_to(np.asarray(order), phys.shape)
        index = self.index(phys, np.clip(orders, 0, 52).astype(np.uint8))
        preserved = (index >= 0) & (orders >= 0)
        twice = np.zeros(len(phys), dtype=np.bool_)
        hit = index[preserved]
        if len(hit):
            # a block named twice in one claim is as wrong as one that somebody else has
            _, first = np.unique(hit, return_index=True)
            repeated = np.ones(len(hit), dtype=np.bool_)
            repeated[first] = False
            twice[preserved] = repeated | (self._owner[hit] != 0)
            fresh = hit[self._owner[hit] == 0]
            self._owner[fresh] = owner
        return Claimed(preserved, twice)

    def claim_page(self, owner: int, phys: int) -> tuple[bool, bool]:
        """Claim a page that must be preserved as a block of its own: (it is, it was claimed before).

        The same as `claim` for one block of order 0, without the cost of arrays.
        """
        index = self._page_index(phys)
        if index < 0:
            return False, False
        if self._owner[index]:
            return True, True
        self._owner[index] = owner
        return True, False

    def claim_pages(self, owner: int, phys: Words) -> bool:
        """Claim aligned pages that are each preserved by themselves and nobody's yet. False if one is
        not; then none is claimed."""
        keys = phys >> np.uint64(PAGE_SHIFT) | np.uint64(1 << RADIX.marker_max)
        index = self.keys.searchsorted(keys)
        if index.max(initial=0) >= len(self.keys) or (self.keys[index] != keys).any():
            return False
        if self._owner[index].any() or len(set(index.tolist())) < len(index):
            return False
        self._owner[index] = owner
        return True

    def _page_index(self, phys: int) -> int:
        key = np.uint64(RADIX.key(phys, 0))
        index = int(self.keys.searchsorted(key))
        return index if index < len(self.keys) and self.keys[index] == key and phys % PAGE_SIZE == 0 else -1

    def claim_range(
        self, owner: int, start: int, end: int, *, shared: bool = False
    ) -> tuple[list[int], bool]:
        """Claim every block that has a byte of [start, end).

        Returns the addresses of those that somebody has already (unless `shared`), and whether all of the
        range is preserved.
        """
        index = self.intersecting(start, end)
        taken = index[self._owner[index] != 0]
        fresh = index[self._owner[index] == 0]
        self._owner[fresh] = owner
        return ([] if shared else self.phys[taken].tolist()), self.covers(start, end)

    def owner_of(self, phys: int, order: int = 0) -> str:
        """Label of who has claimed the block, "" if nobody has."""
        if order == 0:
            index = self._page_index(phys)
        else:
            index = int(self.index(np.array([phys], dtype=np.uint64), order)[0])
        return self.owners[int(self._owner[index])] if index >= 0 else ""

    def unexplained(self) -> tuple[Words, Orders]:
        """(phys, order) of the blocks that nobody has claimed."""
        free = self._owner == 0
        return self.phys[free], self.order[free]
