"""The preserved-memory radix tree: which blocks of memory the next kernel must keep (Linux 7.2 KHO ABI, radix
tree).

A key names one block of 2^order pages::

    order 0:  0 0 0 0 0 0 0 0 0 0 0 1 [ phys >> 12                               ]   bit 52 marks order 0
    order o:  ... marker at bit 52 - o [ phys >> (12 + o)                                  ]

    bits 59..51 | 50..42 | 41..33 | 32..24 | 23..15 | 14..0
    level 5     | 4      | 3      | 2      | 1      | bit in the leaf (level 0)

Interior nodes are 512 addresses of the next lower page, 0 for none; a leaf is a bitmap of 32768 keys. The
tree says nothing about who owns a block.

Reading goes level by level with numpy. Every page is visited at most once, and only keys of blocks inside RAM
are kept, so time and memory are bounded by the size of RAM whatever the tree says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kho.abi import ORDER_MAX, PAGE_SHIFT, PAGE_SIZE, RADIX
from kho.findings import Findings
from kho.memory import Reader, Words, WritableMemory

LEAF_BITS: Final = 1 << RADIX.leaf_bits
TABLE: Final = 1 << RADIX.table_bits
LEAVES_AT_ONCE: Final = 256
OUTSIDE_KEPT: Final = 1000  # blocks outside RAM that are listed; the rest is counted

Orders = NDArray[np.uint8]


def _no_words() -> Words:
    return np.empty(0, dtype=np.uint64)


@dataclass
class RadixTree:
    """What a tree says. `phys` and `order` are the preserved blocks inside RAM, by ascending key."""

    root: int
    phys: Words = field(default_factory=_no_words)
    order: Orders = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    node_phys: Words = field(default_factory=_no_words)
    node_level: Orders = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    complete: bool = True
    """False when a pointer could not be followed, so blocks may be missing here."""

    @property
    def keys(self) -> Words:
        """The key of each block, ascending."""
        return encode_keys(self.phys, self.order)


def encode_keys(phys: Words, order: Orders | int) -> Words:
    """Keys of blocks; `order` is at most 52."""
    orders = np.broadcast_to(np.asarray(order, dtype=np.uint64), phys.shape)
    marker = np.uint64(1) << (np.uint64(RADIX.marker_max) - orders)
    # a shift by 64, which order 52 needs, is not defined
    return np.asarray(marker | (phys >> np.uint64(PAGE_SHIFT)) >> orders, dtype=np.uint64)


def read_tree(
    reader: Reader, root: int, findings: Findings, scratch: list[tuple[int, int]] | None = None
) -> RadixTree:
    """Walk the tree at `root`. What is wrong with it goes to `findings` (INV-8 nodes, INV-9 blocks).

    `scratch` is the (start, end) list of the scratch areas if it is known: a node must not lie there.
    """
    tree = RadixTree(root)
    nodes: list[Words] = []
    levels: list[Orders] = []
    seen = _no_words()
    pointers = np.array([root], dtype=np.uint64)
    prefixes = np.zeros(1, dtype=np.uint64)
    for level in range(RADIX.depth - 1, 0, -1):
        pointers, prefixes = _usable(reader, tree, findings, pointers, prefixes, level, seen, scratch)
        seen = np.sort(np.concatenate((seen, pointers)))
        nodes.append(pointers)
        levels.append(np.full(len(pointers), level, dtype=np.uint8))
        # a slice at a time: a hostile level can have as many nodes as there are pages
        next_pointers = []
        next_prefixes = []
        for at in range(0, len(pointers), LEAVES_AT_ONCE):
            words = reader.pages(pointers[at : at + LEAVES_AT_ONCE]).view("<u8")
            row, column = np.nonzero(words)
            next_pointers.append(words[row, column].astype(np.uint64))
            table = prefixes[at : at + LEAVES_AT_ONCE][row] << np.uint64(RADIX.table_bits)
            next_prefixes.append(table | column.astype(np.uint64))
            if sum(map(len, next_pointers)) > reader.ram_bytes // PAGE_SIZE + TABLE:
                tree.complete = False
                findings.add(
                    "INV-8", f"level {level - 1} has more nodes than RAM has pages", int(pointers[at])
                )
                break
        pointers = np.concatenate(next_pointers) if next_pointers else _no_words()
        prefixes = np.concatenate(next_prefixes) if next_prefixes else _no_words()
    pointers, prefixes = _usable(reader, tree, findings, pointers, prefixes, 0, seen, scratch)
    nodes.append(pointers)
    levels.append(np.zeros(len(pointers), dtype=np.uint8))
    tree.node_phys = np.concatenate(nodes)
    tree.node_level = np.concatenate(levels)
    _read_leaves(reader, tree, findings, pointers, prefixes)
    return tree


def _usable(
    reader: Reader,
    tree: RadixTree,
    findings: Findings,
    pointers: Words,
    prefixes: Words,
    level: int,
    seen: Words,
    scratch: list[tuple[int, int]] | None,
) -> tuple[Words, Words]:
    """Those pointers to nodes of `level` that can be followed."""
    what = "root" if level == RADIX.depth - 1 else "leaf" if level == 0 else f"level {level} node"
    good = pointers % np.uint64(PAGE_SIZE) == 0
    good &= reader.contains_all(pointers, PAGE_SIZE)
    for phys in pointers[~good].tolist():
        where = "is not page aligned" if phys % PAGE_SIZE else "is not in RAM"
        findings.add("INV-8", f"the address of a {what} {where}", phys)
    _, first = np.unique(pointers, return_index=True)
    fresh = np.zeros(len(pointers), dtype=np.bool_)
    fresh[first] = True
    if len(seen):
        at = np.minimum(np.searchsorted(seen, pointers), len(seen) - 1)
        fresh &= seen[at] != pointers
    for phys in pointers[good & ~fresh].tolist():
        findings.add("INV-8", f"a {what} is referenced more than once", phys)
    good &= fresh
    if not good.all():
        tree.complete = False
        pointers, prefixes = pointers[good], prefixes[good]
    for start, end in scratch or ():
        inside = (pointers >= np.uint64(start)) & (pointers < np.uint64(end))
        for phys in pointers[inside].tolist():
            findings.add("INV-8", f"a {what} lies in scratch", phys)
    return pointers, prefixes


def _read_leaves(reader: Reader, tree: RadixTree, findings: Findings, leaves: Words, prefixes: Words) -> None:
    """Decode the bitmaps. Leaves come by ascending prefix, so blocks come out by ascending key."""
    found_phys: list[Words] = []
    found_order: list[Orders] = []
    outside = _Outside(findings)
    for at in range(0, len(leaves), LEAVES_AT_ONCE):
        bitmaps = reader.pages(leaves[at : at + LEAVES_AT_ONCE])
        addresses = leaves[at : at + LEAVES_AT_ONCE].tolist()
        numbers = prefixes[at : at + LEAVES_AT_ONCE].tolist()
        for bitmap, leaf, prefix in zip(bitmaps, addresses, numbers, strict=True):
            base = prefix << RADIX.leaf_bits
            order = ORDER_MAX - (base.bit_length() - 1)
            if not prefix:
                # the orders above 37 share this leaf: the marker is in the bitmap itself
                bits = _bits(bitmap)
                if len(bits) and not bits[0]:
                    findings.add("INV-9", "a leaf has key 0, which means no block", leaf)
                    bits = bits[1:]
                phys, orders = decode_keys(bits)
                whole = False
            elif order < 0:
                findings.add("INV-9", "a leaf holds keys that mean no order", leaf)
                continue
            else:
                frame = (base - (1 << (ORDER_MAX - order))) << order  # page frame of bit 0
                room = (reader.ram_end >> PAGE_SHIFT) - frame
                usable = min(LEAF_BITS, max(0, -(-room >> order)))
                cut = -(-usable // 8)
                if cut < PAGE_SIZE and bitmap[cut:].any():
                    outside.bits(bitmap, cut, frame, order)
                bits = _bits(bitmap[:cut])
                phys = ((bits << np.uint64(order)) + np.uint64(frame)) << np.uint64(PAGE_SHIFT)
                orders = np.full(len(phys), order, dtype=np.uint8)
                whole = reader.contains(frame << PAGE_SHIFT, cut * 8 * (PAGE_SIZE << order))
            if not whole and len(phys):
                size = np.uint64(PAGE_SIZE) << np.minimum(orders, 51).astype(np.uint64)
                inside = reader.contains_all(phys, size) & (orders < ORDER_MAX)
                if not inside.all():
                    outside.blocks(phys[~inside], orders[~inside])
                    phys, orders = phys[inside], orders[inside]
            found_phys.append(phys)
            found_order.append(orders)
    if found_phys:
        tree.phys = np.concatenate(found_phys)
        tree.order = np.concatenate(found_order)


def _bits(bitmap: NDArray[np.uint8]) -> Words:
    """Numbers of the bits that are set."""
    return np.flatnonzero(np.unpackbits(bitmap, bitorder="little").view(np.bool_)).view(np.uint64)


@dataclass
class _Outside:
    """Blocks that are not in RAM: the first ones are listed, the rest is counted."""

    findings: Findings
    listed: int = 0

    def blocks(self, phys: Words, order: Orders) -> None:
        for index in range(len(phys)):
            if self.listed >= OUTSIDE_KEPT:
                self.findings.add_more("INV-9", len(phys) - index)
                return
            self.findings.add(
                "INV-9", f"the preserved block of order {int(order[index])} is not in RAM", int(phys[index])
            )
            self.listed += 1

    def bits(self, bitmap: NDArray[np.uint8], cut: int, frame: int, order: int) -> None:
        """Bits of a leaf from byte `cut` on: all of them are above the end of RAM."""
        if self.listed >= OUTSIDE_KEPT:
            self.findings.add_more("INV-9", int(np.bitwise_count(bitmap[cut:]).sum()))
            return
        bits = _bits(bitmap[cut:]) + np.uint64(cut * 8)
        phys = ((bits << np.uint64(order)) + np.uint64(frame)) << np.uint64(PAGE_SHIFT)
        self.blocks(phys, np.full(len(phys), order, dtype=np.uint8))


def decode_keys(keys: Words) -> tuple[Words, Orders]:
    """(phys, order) of valid keys."""
    # float64 rounds a 53-bit key up to the next power of two only if its top 53 bits are all ones; keys have
    # at most 53 bits, so the conversion is exact
    marker = np.frexp(keys.astype(np.float64))[1].astype(np.int64) - 1
    order = (ORDER_MAX - marker).astype(np.uint64)
    frame = (keys ^ (np.uint64(1) << marker.astype(np.uint64))) << np.minimum(order, np.uint64(51))
    return np.asarray(frame << np.uint64(PAGE_SHIFT), dtype=np.uint64), order.astype(np.uint8)


# --- writing ------------------------------------------------------------------------------------------------


def decompose(phys: int, pages: int) -> list[tuple[int, int]]:
    """The blocks (phys, order) that kho_preserve_pages makes of a range on one memory node: greedy and
    aligned.
    """
    blocks = []
    frame, end = phys >> PAGE_SHIFT, (phys >> PAGE_SHIFT) + pages
    while frame < end:
        order = (end - frame).bit_length() - 1
        if frame:
            order = min(order, (frame & -frame).bit_length() - 1)
        blocks.append((frame << PAGE_SHIFT, order))
        frame += 1 << order
    return blocks


def write_tree(
    memory: WritableMemory, allocate: Callable[[], int], phys: Words, order: Orders, root: int | None = None
) -> tuple[int, list[tuple[int, int]]]:
    """Write a tree that preserves the given blocks; duplicates count once.

    `allocate` returns the address of a fresh zeroed page. Returns (root, nodes as (level, phys) in the order
    of allocation, root first). ValueError for a block that is not aligned to its size or an order above 52.
    """
    if len(order) and int(order.max()) > ORDER_MAX:
        raise ValueError(f"orders end at {ORDER_MAX}")
    size = np.uint64(PAGE_SIZE) << np.minimum(order, 51).astype(np.uint64)
    if np.any(phys % size):
        raise ValueError("a block is not aligned to its size")
    keys = np.sort(encode_keys(phys.astype(np.uint64), order))
    keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))] if len(keys) else keys
    top = RADIX.depth - 1
    root = allocate() if root is None else root
    nodes = [(top, root)]
    parents: dict[int, int] = {0: root}
    bounds = np.flatnonzero(np.diff(keys >> np.uint64(RADIX.leaf_bits))) + 1
    groups = np.split(keys, bounds) if len(keys) else []
    leaf_prefixes = np.array([int(group[0]) >> RADIX.leaf_bits for group in groups], dtype=np.uint64)
    for level in range(top - 1, -1, -1):
        prefixes = np.unique(leaf_prefixes >> np.uint64(level * RADIX.table_bits)).tolist()
        children: dict[int, int] = {}
        tables: dict[int, Words] = {}
        for prefix in prefixes:
            children[prefix] = allocate()
            nodes.append((level, children[prefix]))
            table = tables.setdefault(prefix >> RADIX.table_bits, np.zeros(TABLE, dtype="<u8"))
            table[prefix & (TABLE - 1)] = children[prefix]
        for parent, table in tables.items():
            memory.write(parents[parent], table.tobytes())
        parents = children
    for group in groups:
        bits = np.zeros(LEAF_BITS, dtype=np.uint8)
        bits[(group & np.uint64(LEAF_BITS - 1)).astype(np.int64)] = 1
        leaf = parents[int(group[0]) >> RADIX.leaf_bits]
        memory.write(leaf, np.packbits(bits, bitorder="little").tobytes())
    return root, nodes
