"""The radix tree: worked examples of the specification, a plain model, hostile trees."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kho.abi import PAGE_SIZE, RADIX, RadixGeometry
from kho.findings import Findings
from kho.memory import Buffer, Bytes, Reader
from kho.preserved import PreservedSet
from kho.radix import RadixTree, decode_keys, decompose, encode_keys, read_tree, write_tree

EXAMPLES = [
    (0x1000, 0, 0x0010000000000001, (2, 0, 0, 0, 0, 0x1)),
    (0x104A3C000, 0, 0x0010000000104A3C, (2, 0, 0, 0, 0x20, 0x4A3C)),
    (0x10000000000, 0, 0x0010000010000000, (2, 0, 0, 0x10, 0, 0)),
    (0x140000000, 9, 0x0000080000000A00, (0, 2, 0, 0, 0, 0xA00)),
    (0x140000000, 10, 0x0000040000000500, (0, 1, 0, 0, 0, 0x500)),
    (0x8000000, 15, 0x0000002000000001, (0, 0, 0x10, 0, 0, 0x1)),
]


class Ram:
    """A buffer at the bottom of RAM that says it is larger."""

    def __init__(self, size: int, claimed: int) -> None:
        self.buffer = Buffer(size)
        self.ranges = [(0, claimed)]
        self.next = PAGE_SIZE

    def read(self, phys: int, size: int) -> Bytes:
        return self.buffer.read(phys, size)

    def write(self, phys: int, data: bytes | Bytes) -> None:
        self.buffer.write(phys, data)

    def allocate(self) -> int:
        self.next += PAGE_SIZE
        return self.next


def arrays(blocks: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([phys for phys, _ in blocks], dtype=np.uint64),
        np.array([order for _, order in blocks], dtype=np.uint8),
    )


def pairs(tree: RadixTree) -> list[tuple[int, int]]:
    return list(zip(tree.phys.tolist(), tree.order.tolist(), strict=True))


@pytest.mark.parametrize(("phys", "order", "key", "path"), EXAMPLES)
def test_worked_example(phys: int, order: int, key: int, path: tuple[int, ...]) -> None:
    assert RADIX.key(phys, order) == key
    assert RADIX.decode(key) == (phys, order)
    assert encode_keys(*arrays([(phys, order)])).tolist() == [key]
    ram = Ram(1 << 20, 1 << 41)
    root, nodes = write_tree(ram, ram.allocate, *arrays([(phys, order)]))
    assert [level for level, _ in nodes] == [5, 4, 3, 2, 1, 0]
    at = root
    for index in path[:-1]:
        words = np.frombuffer(ram.read(at, PAGE_SIZE).tobytes(), dtype="<u8")
        assert np.flatnonzero(words).tolist() == [index]
        at = int(words[index])
    bits = np.unpackbits(ram.read(at, PAGE_SIZE), bitorder="little")
    assert np.flatnonzero(bits).tolist() == [path[-1]]


@pytest.mark.parametrize(
    ("shift", "marker", "table", "leaf", "depth"),
    [(12, 52, 9, 15, 6), (14, 50, 11, 17, 5), (16, 48, 13, 19, 4)],
)
def test_geometry(shift: int, marker: int, table: int, leaf: int, depth: int) -> None:
    geometry = RadixGeometry(shift)
    assert (geometry.marker_max, geometry.table_bits, geometry.leaf_bits, geometry.depth) == (
        marker, table, leaf, depth,
    )  # fmt: skip
    assert geometry.decode(geometry.key(5 << shift, 0)) == (5 << shift, 0)


def test_keys_without_meaning() -> None:
    for key in (0, 1 << 53, (1 << 60) - 1):
        with pytest.raises(ValueError, match="no key"):
            RADIX.decode(key)


BLOCKS = st.integers(0, 20).flatmap(
    lambda order: st.tuples(
        st.integers(0, (1 << 36 >> order + 12) - 1).map(lambda n: n << order + 12), st.just(order)
    )
)


@given(st.lists(BLOCKS, max_size=40))
def test_round_trip(blocks: list[tuple[int, int]]) -> None:
    ram = Ram(1 << 21, 1 << 36)
    root, nodes = write_tree(ram, ram.allocate, *arrays(blocks))
    findings = Findings()
    tree = read_tree(Reader(ram), root, findings)
    assert pairs(tree) == sorted(set(blocks), key=lambda block: RADIX.key(*block))
    assert not findings.items and tree.complete
    levels = zip(tree.node_level.tolist(), tree.node_phys.tolist(), strict=True)
    assert sorted(levels) == sorted(nodes)


@given(st.lists(st.tuples(st.integers(0, 52), st.integers(0, (1 << 52) - 1)), min_size=1))
def test_keys_of_all_orders(items: list[tuple[int, int]]) -> None:
    blocks = [((frame >> order << order) << 12, order) for order, frame in items]
    keys = encode_keys(*arrays(blocks))
    assert keys.tolist() == [RADIX.key(*block) for block in blocks]
    phys, order = decode_keys(keys)
    assert list(zip(phys.tolist(), order.tolist(), strict=True)) == [RADIX.decode(int(key)) for key in keys]


def test_a_large_order_shares_the_last_leaf() -> None:
    ram = Ram(1 << 20, 1 << 52)
    blocks = [(0, 40), (1 << 51, 39), (1 << 50, 38)]
    root, _ = write_tree(ram, ram.allocate, *arrays(blocks))
    findings = Findings()
    assert pairs(read_tree(Reader(ram), root, findings)) == sorted(
        blocks, key=lambda block: RADIX.key(*block)
    )
    assert not findings.items


def test_writer_refuses_what_no_key_means() -> None:
    ram = Ram(1 << 20, 1 << 36)
    with pytest.raises(ValueError, match="aligned"):
        write_tree(ram, ram.allocate, *arrays([(0x1000, 1)]))
    with pytest.raises(ValueError, match="52"):
        write_tree(ram, ram.allocate, *arrays([(0, 53)]))


def test_decomposition_as_recorded() -> None:
    """The 1 MiB region that a real kernel preserved at 0x7a27000."""
    assert [order for _, order in decompose(0x7A27000, 256)] == [0, 3, 4, 6, 7, 5, 2, 1, 0]


@given(st.integers(1, 1 << 20), st.integers(1, 5000))
def test_decomposition_covers_exactly(frame: int, pages: int) -> None:
    at = frame
    for phys, order in decompose(frame << 12, pages):
        assert phys == at << 12 and at % (1 << order) == 0
        at += 1 << order
    assert at == frame + pages


def test_four_million_pages() -> None:
    """The promise is half a second; what is asserted here is that nothing is done page by page in Python."""
    ram = Ram(4 << 20, 64 << 30)
    phys = (np.arange(4 << 20, dtype=np.uint64) + np.uint64(1000)) * np.uint64(PAGE_SIZE)
    root, _ = write_tree(ram, ram.allocate, phys, np.zeros(len(phys), dtype=np.uint8))
    start = time.perf_counter()
    tree = read_tree(Reader(ram), root, Findings())
    preserved = PreservedSet(tree.phys, tree.order)
    print(f"\n4,194,304 pages in {time.perf_counter() - start:.3f} s")
    assert np.array_equal(preserved.phys, phys)
    assert not tree.order.any()


# --- hostile trees ------------------------------------------------------------------------------------------


def test_tree_full_of_ones_is_bounded() -> None:
    ram = Ram(4 << 20, 4 << 20)
    ram.buffer.data[:] = 0xFF
    findings = Findings()
    tree = read_tree(Reader(ram), 0, findings)
    assert not tree.complete and len(tree.node_phys) == 1
    assert findings.counts["INV-8"] == 512


def test_every_page_is_a_node_of_the_tree() -> None:
    """All of RAM as one tree whose leaves are full: every page is read once, blocks outside RAM are
    counted.
    """
    ram = Ram(8 << 20, 8 << 20)
    pages = np.arange(PAGE_SIZE, 8 << 20, PAGE_SIZE, dtype=np.uint64)
    per_level = [1, 4, 40, 200, 700]
    at = 0
    for level, count in enumerate(per_level[:-1]):
        below = pages[at + count : at + count + per_level[level + 1]]
        for number, part in enumerate(np.array_split(below, count)):
            node = np.zeros(512, dtype="<u8")
            node[2 : 2 + len(part)] = part
            ram.write(int(pages[at + number]), node.tobytes())
        at += count
    for number, part in enumerate(np.array_split(pages[at + 700 :], 700)):
        node = np.zeros(512, dtype="<u8")
        node[: len(part)] = part
        ram.write(int(pages[at + number]), node.tobytes())
    for leaf in pages[at + 700 :].tolist():
        ram.write(leaf, b"\xff" * PAGE_SIZE)
    findings = Findings()
    tree = read_tree(Reader(ram), int(pages[0]), findings)
    assert len(tree.node_phys) == len(pages)
    assert len(tree.phys) <= 2 * (8 << 20) // PAGE_SIZE
    assert findings.counts["INV-9"] > 10_000 and len(findings.items) <= 2000


def test_key_zero_and_orders_below_zero() -> None:
    ram = Ram(1 << 20, 1 << 30)
    root, _ = write_tree(ram, ram.allocate, *arrays([(0x5000, 0)]))
    findings = Findings()
    node = root
    for _ in range(5):
        following = ram.allocate()
        ram.write(node, following.to_bytes(8, "little"))
        node = following
    ram.write(node, b"\1")
    ram.write(root + 8 * 4, ram.read(root + 16, 8).tobytes())  # entry 4: keys from 2^53 on
    ram.write(root + 16, bytes(8))
    tree = read_tree(Reader(ram), root, findings)
    messages = [finding.message for finding in findings.of("INV-9")]
    assert any("key 0" in message for message in messages) and any(
        "no order" in message for message in messages
    )
    assert not len(tree.phys)


@given(st.binary(min_size=64, max_size=64), st.integers(0, 30))
def test_random_nodes(noise: bytes, where: int) -> None:
    ram = Ram(1 << 20, 1 << 20)
    root, nodes = write_tree(ram, ram.allocate, *arrays([(0x5000, 0), (0x8000, 3), (0x40000, 4)]))
    _, phys = nodes[where % len(nodes)]
    ram.write(phys + where * 64, noise)
    findings = Findings()
    tree = read_tree(Reader(ram), root, findings)
    assert len(tree.phys) < 1000


# --- the set ------------------------------------------------------------------------------------------------


def preserved_of(blocks: list[tuple[int, int]]) -> PreservedSet:
    ordered = sorted(set(blocks), key=lambda block: RADIX.key(*block))
    return PreservedSet(*arrays(ordered))


SMALL = st.integers(0, 4).flatmap(
    lambda order: st.tuples(st.integers(0, (64 >> order) - 1).map(lambda n: n << order + 12), st.just(order))
)


@given(st.lists(SMALL, max_size=20), st.integers(0, 70), st.integers(0, 70), st.integers(0, 4))
def test_set_equals_a_plain_model(blocks: list[tuple[int, int]], first: int, count: int, order: int) -> None:
    preserved = preserved_of(blocks)
    pages = {(phys >> 12) + n for phys, size in blocks for n in range(1 << size)}
    start, end = first << 12, first + count << 12
    wanted = set(range(first, first + count))
    assert preserved.covers(start, end) == (wanted <= pages)
    missing = {
        page for low, high in preserved.gaps(start, end, 1000) for page in range(low >> 12, high >> 12)
    }
    assert missing == wanted - pages
    assert preserved.has(start, order) == ((start, order) in blocks)
    touching = {int(preserved.keys[index]) for index in preserved.intersecting(start, end)}
    assert touching == {
        RADIX.key(phys, size) for phys, size in blocks
        if phys < end and start < phys + (PAGE_SIZE << size) and start < end
    }  # fmt: skip
    at = [size for phys, size in blocks if phys == start]
    assert preserved.orders_at(np.array([start], dtype=np.uint64)).tolist() == [min(at, default=-1)]
    assert preserved.touched(np.array([start], dtype=np.uint64)).tolist() == [first in pages]
    total = sum(1 << size for _, size in set(blocks))
    assert preserved.overlapping == (total != len(pages)) == bool(preserved.overlaps())


def test_claims() -> None:
    preserved = preserved_of([(0x1000, 0), (0x2000, 0), (0x4000, 2)])
    one, two = preserved.owner("one"), preserved.owner("two")
    claimed = preserved.claim(one, np.array([0x1000, 0x3000, 0x4000], dtype=np.uint64), np.array([0, 0, 2]))
    assert claimed.preserved.tolist() == [True, False, True] and not claimed.twice.any()
    claimed = preserved.claim(two, np.array([0x1000, 0x4000, 0x2000], dtype=np.uint64), np.array([0, 1, 0]))
    assert claimed.preserved.tolist() == [True, False, True] and claimed.twice.tolist() == [
        True,
        False,
        False,
    ]
    assert preserved.owner_of(0x1000) == "one" and preserved.owner_of(0x2000) == "two"
    claimed = preserved.claim(two, np.array([0x9000, 0x9000], dtype=np.uint64), 0)
    assert not claimed.preserved.any()
    preserved = preserved_of([(0x1000, 0)])
    claimed = preserved.claim(preserved.owner("x"), np.array([0x1000, 0x1000], dtype=np.uint64), 0)
    assert claimed.twice.tolist() == [False, True]
    assert len(preserved_of([(0x1000, 0)]).unexplained()[0]) == 1
