"""Linked serialization blocks (Linux 7.2 KHO ABI, kho_block): a chain of pages of fixed-size entries.

Each block is one preserved page: a header {next, count} and `count` entries. In a chain that is handed over,
all blocks but the last are full and none is empty. This file knows nothing about what the entries mean; the
reader reports what is wrong with a chain and its owner decides which invariant that breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kho.abi import BLOCK_HEADER, BLOCKS_MAX, PAGE_SIZE, block_capacity
from kho.errors import LimitExceeded
from kho.memory import Bytes, Reader, WritableMemory


@dataclass(frozen=True)
class Block:
    """One page of a chain. `entries` is a view of all slots, used or not; `count` is as stored."""

    phys: int
    next: int
    count: int
    entries: Bytes = field(repr=False, compare=False)


@dataclass
class BlockChain:
    """The blocks that could be reached, and what is wrong with the chain as (message, phys) pairs."""

    entry_size: int
    blocks: list[Block] = field(default_factory=list)
    bad_links: list[tuple[str, int]] = field(default_factory=list)
    bad_counts: list[tuple[str, int]] = field(default_factory=list)
    foreign: list[tuple[str, int]] = field(default_factory=list)
    """A block that another chain has already; the chain is not followed into it."""
    lost: list[tuple[str, int]] = field(default_factory=list)
    """Slots after a block's count that are not empty: entries that the next kernel will not see."""

    @property
    def complete(self) -> bool:
        """Whether the end of the chain was reached and all counts make sense."""
        return not self.bad_links and not self.bad_counts and not self.foreign

    @property
    def entries(self) -> list[tuple[int, bytes]]:
        """(phys, bytes) of each entry in use; of a block with an impossible count, up to the last that is not
        empty.
        """
        size = self.entry_size
        capacity = block_capacity(size)
        out = []
        for block in self.blocks:
            count = block.count
            if count > capacity:
                used = block.entries[: capacity * size].nonzero()[0]
                count = int(used[-1]) // size + 1 if len(used) else 0
            for slot in range(count):
                at = slot * size
                out.append((block.phys + BLOCK_HEADER.size + at, block.entries[at : at + size].tobytes()))
        return out


def read_chain(reader: Reader, head: int, entry_size: int, taken: dict[int, str], owner: str) -> BlockChain:
    """Follow the chain from `head`; 0 is the empty chain. At most `BLOCKS_MAX` blocks, none of them twice.

    `taken` says which chain has a block, for all chains of a handover, and is added to: so a block is read
    once however many chains lead to it.
    """
    chain = BlockChain(entry_size)
    capacity = block_capacity(entry_size)
    seen: set[int] = set()
    at = head
    short: tuple[str, int] | None = None
    while at:
        problem = _link_problem(reader, at, seen)
        if problem:
            chain.bad_links.append((problem, at))
            break
        if at in taken:
            chain.foreign.append((f"the block belongs to {taken[at]} already", at))
            break
        if short:
            chain.bad_counts.append(short)
            short = None
        seen.add(at)
        taken[at] = owner
        page = reader.read(at, PAGE_SIZE)
        following, count = BLOCK_HEADER.unpack(page[: BLOCK_HEADER.size].tobytes())
        block = Block(at, following, count, page[BLOCK_HEADER.size :])
        chain.blocks.append(block)
        if not 1 <= count <= capacity:
            chain.bad_counts.append((f"the block has {count} entries instead of 1 to {capacity}", at))
        elif following and count < capacity:
            # a bad link explains this; so it is reported only once the link has turned out to be good
            short = (f"the block has {count} of {capacity} entries but is not the last", at)
        elif (rest := block.entries[count * entry_size : capacity * entry_size]).any():
            slot = count + int(rest.nonzero()[0][0]) // entry_size
            chain.lost.append((
                f"slot {slot} is not empty, but the block counts {count} entries",
                at + BLOCK_HEADER.size + slot * entry_size,
            ))  # fmt: skip
        at = following
    return chain


def _link_problem(reader: Reader, phys: int, seen: set[int]) -> str:
    if phys % PAGE_SIZE:
        return "the address of a block is not page aligned"
    if not reader.contains(phys, PAGE_SIZE):
        return "the address of a block is not in RAM"
    if phys in seen:
        return "the chain of blocks is a cycle"
    if len(seen) >= BLOCKS_MAX:
        return f"the chain has more than {BLOCKS_MAX} blocks"
    return ""


def write_chain(
    memory: WritableMemory, allocate: Callable[[], int], entries: Sequence[bytes], entry_size: int
) -> list[int]:
    """Write `entries` as full blocks and a rest; returns the addresses, the head first (none for no
    entries).
    """
    capacity = block_capacity(entry_size)
    groups = [entries[at : at + capacity] for at in range(0, len(entries), capacity)]
    if len(groups) > BLOCKS_MAX:
        raise LimitExceeded(f"{len(entries)} entries need more than {BLOCKS_MAX} blocks")
    if any(len(entry) != entry_size for entry in entries):
        raise ValueError(f"an entry does not have {entry_size} bytes")
    pages = [allocate() for _ in groups]
    for page, following, group in zip(pages, [*pages, 0][1:], groups, strict=True):
        memory.write(
            page, (BLOCK_HEADER.pack(following, len(group)) + b"".join(group)).ljust(PAGE_SIZE, b"\0")
        )
    return pages
