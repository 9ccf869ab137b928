"""Handovers for tests: one small image with everything in it, and helpers to damage it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from kho.abi import PAGE_SIZE, RADIX
from kho.builder import Built, HandoverBuilder
from kho.check import Report, failed
from kho.errors import KhoError
from kho.handover import Handover
from luo.builder import FileToMake, SessionToMake, add_luo
from luo.check import TABLE, check
from luo.flb import Flb

RECORDED = Path(__file__).parent.parent / "data" / "handovers"


def contents(seed: int, size: int) -> bytes:
    """Bytes that are the same in every run."""
    return random.Random(seed).randbytes(size)


SESSIONS = (
    SessionToMake(
        "alpha", [FileToMake(1, contents(1, 9000)), FileToMake(2, b"", pos=3), FileToMake(7, b"x")]
    ),
    SessionToMake("beta"),
    SessionToMake(
        "gamma", [FileToMake(1, contents(2, PAGE_SIZE * 20 + 5), pos=99, seals=6, orders=[0, 2, 4])]
    ),
)
FLBS = (Flb("first-flb", 0xFEED, 2), Flb("second-flb", 0xBEEF, 1))


def build(
    moment: str = "K", sessions: tuple[SessionToMake, ...] = SESSIONS, flbs: tuple[Flb, ...] = FLBS
) -> Built:
    """The small image."""
    builder = HandoverBuilder(first=0x123000)
    builder.add_metadata("7.2.13-test", 1)
    add_luo(builder, sessions, flbs=flbs)
    builder.add_reserve_mem(("golden", 37))
    builder.add_test([(0, b"abc"), (3, contents(3, PAGE_SIZE * 8))])
    return builder.finish(moment)


def many_sessions(count: int) -> tuple[SessionToMake, ...]:
    """Sessions without files."""
    return tuple(SessionToMake(f"sess-{number}") for number in range(count))


def many_files(count: int) -> tuple[SessionToMake, ...]:
    """One session with so many empty files."""
    return (SessionToMake("files", [FileToMake(number) for number in range(count)]),)


def read_u64(built: Built, phys: int) -> int:
    """A word of memory."""
    return int.from_bytes(built.memory.read(phys, 8).tobytes(), "little")


def put(built: Built, phys: int, value: int, size: int = 8) -> None:
    """Store an integer."""
    built.memory.write(phys, value.to_bytes(size, "little"))


def slot_of(built: Built, phys: int, order: int, level: int) -> int:
    """Address of the entry for a key in the node of that level (1 and up) on its path, which must
    be there.
    """
    key = RADIX.key(phys, order)
    node = built.nodes[0][1]
    for at in range(RADIX.depth - 1, 0, -1):
        slot = node + 8 * (key >> (RADIX.leaf_bits + (at - 1) * RADIX.table_bits) & 511)
        if at == level:
            return slot
        node = read_u64(built, slot)
        assert node, "the path does not exist"
    raise AssertionError("levels begin at 1")


def set_bit(built: Built, phys: int, order: int = 0, value: bool = True) -> None:
    """Preserve one more block, or one less. The leaf must be there."""
    leaf = read_u64(built, slot_of(built, phys, order, 1))
    assert leaf, "the leaf does not exist"
    bit = RADIX.key(phys, order) % (1 << RADIX.leaf_bits)
    byte = int(built.memory.read(leaf + bit // 8, 1)[0])
    changed = byte | 1 << bit % 8 if value else byte & ~(1 << bit % 8)
    assert changed != byte, "nothing would change"
    put(built, leaf + bit // 8, changed, 1)


def read(built: Built, moment: str = "K") -> Handover:
    """Decode a built image."""
    return Handover.read(built.memory, scratch=built.scratch_list if moment == "J" else None)


def verdict(built: Built, moment: str = "K", **known: object) -> Report:
    """Decode and check; a root FDT that cannot be read is a violation as well."""
    try:
        return check(read(built, moment), moment, **known)  # type: ignore[arg-type]
    except KhoError as error:
        report = failed(error, moment, TABLE)
        assert report is not None, error
        return report


def free_page(built: Built) -> int:
    """A page in RAM that nothing uses."""
    used = {phys + n * PAGE_SIZE for phys, order in built.blocks for n in range(1 << order)}
    used |= {phys for _, phys in built.nodes}
    for phys in range(6 << 20, 8 << 20, PAGE_SIZE):
        if phys not in used and not np.any(built.memory.read(phys, PAGE_SIZE)):
            return phys
    raise AssertionError("no free page")
