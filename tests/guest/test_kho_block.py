"""Block sets: the kernel's code writes what `kho.block` reads, reads what it writes, and refuses the rest."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kho.abi import BLOCKS_MAX, block_capacity
from kho.block import BlockChain, read_chain
from kho.memory import Reader
from tests.guest.kho_cases import OLD_PAGES, RAM_SIZE, Populate, blocks_of, update
from tests.guest.kho_host import MIB, PAGE, Kernel, Ram

EINVAL, ENOMEM, ENOSPC = 22, 12, 28
ENTRY = 80  # of LUO's sessions: 51 to a block, without a rest
CAPACITY = block_capacity(ENTRY)


class Set:
    """A block set of a kernel, and an iterator on it."""

    def __init__(self, kernel: Kernel, entry_size: int = ENTRY) -> None:
        self.kernel = kernel
        self.lib = kernel.lib
        self.entry_size = entry_size
        self.set = ctypes.create_string_buffer(self.lib.host_sizeof_set())
        self.it = ctypes.create_string_buffer(64)
        self.lib.kho_block_set_init(self.set, entry_size)

    def grow(self, entries: int) -> int:
        return int(self.lib.kho_block_set_grow(self.set, entries))

    def shrink(self, entries: int) -> None:
        self.lib.kho_block_set_shrink(self.set, entries)

    def rewind(self) -> None:
        self.lib.kho_block_it_init(self.it, self.set)

    def write(self, entry: bytes) -> bool:
        at = self.lib.kho_block_it_reserve_entry(self.it)
        if at:
            self.kernel.ram.write(self.kernel.phys(at), entry)
        return bool(at)

    def read(self) -> bytes | None:
        at = self.lib.kho_block_it_read_entry(self.it)
        return ctypes.string_at(at, self.entry_size) if at else None

    def previous(self) -> bytes | None:
        at = self.lib.kho_block_it_prev(self.it)
        return ctypes.string_at(at, self.entry_size) if at else None

    def read_all(self) -> list[bytes]:
        self.rewind()
        found = []
        while (entry := self.read()) is not None:
            found.append(entry)
        return found

    def clear(self) -> None:
        self.lib.kho_block_set_clear(self.set)

    def destroy(self) -> None:
        self.lib.kho_block_set_destroy(self.set)

    def restore(self, head: int) -> int:
        return int(self.lib.kho_block_set_restore(self.set, head))

    @property
    def head(self) -> int:
        return int(self.lib.host_set_head(self.set))

    @property
    def blocks(self) -> int:
        return int(self.lib.host_set_blocks(self.set))

    def seen(self) -> BlockChain:
        """By the host."""
        return read_chain(Reader(self.kernel.ram), self.head, self.entry_size, {}, "test")


def entry_of(number: int, size: int = ENTRY) -> bytes:
    return (number + 1).to_bytes(8, "little") * (size // 8)


def fill(s: Set, count: int) -> None:
    assert s.grow(count) == 0
    s.rewind()
    for number in range(count):
        assert s.write(entry_of(number, s.entry_size))


def handed_over(old: Kernel, count: int) -> tuple[Populate, int]:
    """A set of `count` entries; the old kernel is gone. What goes to the next one, and the head."""
    s = Set(old)
    fill(s, count)
    handed, head = old.handover(), s.head
    old.close()
    return handed, head


@settings(max_examples=40)
@given(st.data())
def test_any_life_of_a_set(library: Path, data: st.DataObject) -> None:
    """Grow, fill, shrink and clear in any order; the host reads what the model has."""
    with Ram(RAM_SIZE) as ram, Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot()
        handed = kernel.handover()
        before, allocations = len(blocks_of(ram, handed)), kernel.outstanding
        size = data.draw(st.sampled_from([8, 64, 80, 1000, 4080]))
        s = Set(kernel, size)
        capacity = block_capacity(size)
        written = blocks = 0
        for _ in range(data.draw(st.integers(1, 8))):
            count = data.draw(st.integers(0, min(4 * capacity, 300)))
            match data.draw(st.sampled_from(["grow", "fill", "shrink", "clear"])):
                case "grow":
                    assert s.grow(count) == 0
                    blocks = max(blocks, -(-count // capacity))
                case "fill":
                    s.clear()
                    fill(s, count)
                    blocks = max(blocks, -(-count // capacity))
                    written = count
                case "shrink":
                    count = max(count, written)
                    s.shrink(count)
                    blocks = min(blocks, -(-count // capacity))
                case "clear":
                    s.clear()
                    written = 0
            assert s.blocks == blocks
            assert len(blocks_of(ram, handed)) == before + blocks, "a block is not preserved, or still is"
            chain = s.seen()
            assert not chain.bad_links and len(chain.blocks) == blocks
            assert [e for _, e in chain.entries] == [entry_of(n, size)[:size] for n in range(written)]
            assert [block.count for block in chain.blocks] == [
                min(max(written - n * capacity, 0), capacity) for n in range(blocks)
            ]
        s.destroy()
        assert s.head == 0 and len(blocks_of(ram, handed)) == before
        assert 0 <= kernel.outstanding - allocations < 6, "something else than nodes of the tree is left"


def test_capacities_are_those_of_the_format(old: Kernel) -> None:
    for size, capacity in ((80, 51), (64, 63), (16, 255), (4080, 1)):
        s = Set(old, size)
        assert s.grow(capacity) == 0 and s.blocks == 1
        assert s.grow(capacity + 1) == 0 and s.blocks == 2


def test_a_full_set_takes_no_more(old: Kernel) -> None:
    s = Set(old)
    s.rewind()
    assert not s.write(b"x"), "there is no block"
    fill(s, CAPACITY)
    assert not s.write(b"x")
    assert not s.write(b"x")
    assert len(s.seen().entries) == CAPACITY


def test_stepping_back(old: Kernel) -> None:
    s = Set(old)
    fill(s, CAPACITY + 2)
    assert s.previous() == entry_of(CAPACITY + 1)
    assert s.previous() == entry_of(CAPACITY)
    assert s.previous() == entry_of(CAPACITY - 1), "over the edge of a block"
    for number in range(CAPACITY - 2, -1, -1):
        assert s.previous() == entry_of(number)
    assert s.previous() is None
    assert s.read() == entry_of(0)


def test_growing_without_memory_changes_nothing(old: Kernel, ram: Ram) -> None:
    s = Set(old)
    fill(s, 1)
    handed = old.handover()
    before, allocations, chain = blocks_of(ram, handed), old.outstanding, ram.read(s.head, PAGE).copy()
    for n in range(6):
        old.lib.host_fail_after(n)
        assert s.grow(3 * CAPACITY + 1) == -ENOMEM
        old.lib.host_fail_after(-1)
        assert (s.blocks, old.outstanding, blocks_of(ram, handed)) == (1, allocations, before), (
            f"failed at {n}"
        )
        assert (ram.read(s.head, PAGE) == chain).all()


def test_ten_thousand_blocks_and_no_more(library: Path) -> None:
    with Ram(128 * MIB) as ram, Kernel(library, ram, (2 * MIB, 110 * MIB)) as kernel:
        kernel.boot()
        s = Set(kernel, 4080)
        assert s.grow(BLOCKS_MAX) == 0
        assert s.blocks == BLOCKS_MAX
        assert s.grow(BLOCKS_MAX + 1) == -ENOSPC
        assert s.blocks == BLOCKS_MAX
        chain = read_chain(Reader(ram), s.head, 4080, {}, "test")
        assert len(chain.blocks) == BLOCKS_MAX and not chain.bad_links


@pytest.mark.parametrize("count", [1, CAPACITY, CAPACITY + 1, 3 * CAPACITY, 10 * CAPACITY + 7])
def test_the_next_kernel_reads_all_and_frees_it(old: Kernel, library: Path, ram: Ram, count: int) -> None:
    handed, head = handed_over(old, count)
    with update(library, ram, handed) as kernel:
        s = Set(kernel)
        before = kernel.outstanding
        assert s.restore(head) == 0, kernel.log
        assert s.head == head and s.blocks == -(-count // CAPACITY)
        assert s.read_all() == [entry_of(n) for n in range(count)]
        assert s.grow(1000) == -EINVAL, "an incoming set does not grow"
        s.destroy()
        assert (s.head, s.blocks) == (0, 0)
        assert kernel.outstanding == before - -(-count // CAPACITY), "a block was not freed"
        assert kernel.warnings == 0


def test_nothing_handed_over_is_an_empty_set(old: Kernel) -> None:
    s = Set(old)
    assert s.restore(0) == 0
    assert (s.head, s.blocks, s.read_all()) == (0, 0, [])
    assert s.grow(1) == 0, "it is not an incoming one"


def test_shrinking_an_incoming_set_frees_its_tail(old: Kernel, library: Path, ram: Ram) -> None:
    handed, head = handed_over(old, 3 * CAPACITY)
    with update(library, ram, handed) as kernel:
        s = Set(kernel)
        assert s.restore(head) == 0
        s.shrink(CAPACITY + 1)
        assert s.blocks == 2
        assert s.read_all() == [entry_of(n) for n in range(2 * CAPACITY)]
        s.destroy()
        assert kernel.warnings == 0


def addresses(ram: Ram, head: int) -> list[int]:
    found = []
    while head:
        found.append(head)
        head = int(ram.words(head)[0])
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("back", [0, 1, 2, 6])
def test_a_cycle_is_refused(old: Kernel, library: Path, ram: Ram, length: int, back: int) -> None:
    handed, head = handed_over(old, length * CAPACITY)
    chain = addresses(ram, head)
    ram.words(chain[-1])[0] = chain[min(back, length - 1)]
    with update(library, ram, handed) as kernel:
        s = Set(kernel)
        assert s.restore(head) == -EINVAL
        assert (s.head, s.blocks) == (0, 0)
        assert "luo: Block set is corrupted" in kernel.log


@pytest.mark.parametrize("bad", [8, 1 << 60, RAM_SIZE, 45 * MIB, 2**64 - PAGE])
@pytest.mark.parametrize("at", [-1, 0, 2])
def test_a_link_to_what_is_no_block_is_refused(
    old: Kernel, library: Path, ram: Ram, at: int, bad: int
) -> None:
    handed, head = handed_over(old, 3 * CAPACITY)
    if at < 0:
        head = bad
    else:
        ram.words(addresses(ram, head)[at])[0] = bad
    with update(library, ram, handed) as kernel:
        s = Set(kernel)
        assert s.restore(head) == -EINVAL
        assert s.blocks == 0


@pytest.mark.parametrize("count", [0, CAPACITY + 1, 2**64 - 1])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_impossible_count_frees_the_whole_chain(
    old: Kernel, library: Path, ram: Ram, at: int, count: int
) -> None:
    handed, head = handed_over(old, 3 * CAPACITY)
    chain = addresses(ram, head)
    ram.words(chain[at])[1] = count
    with update(library, ram, handed) as kernel:
        s = Set(kernel)
        before = kernel.outstanding
        assert s.restore(head) == -EINVAL
        assert f"luo: Block contains invalid entry count: {count}" in kernel.log
        assert (s.head, s.blocks) == (0, 0)
        assert kernel.outstanding == before - 3
        assert all(kernel.page(block)[1:3] == (0, 0) for block in chain), "a block was left behind"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_restoring_without_memory_frees_the_whole_chain(old: Kernel, library: Path, ram: Ram, n: int) -> None:
    handed, head = handed_over(old, 3 * CAPACITY)
    with update(library, ram, handed) as kernel:
        s = Set(kernel)
        before = kernel.outstanding
        kernel.lib.host_fail_after(n)
        assert s.restore(head) == -ENOMEM
        kernel.lib.host_fail_after(-1)
        assert kernel.outstanding == before - 3


def test_a_block_that_is_already_restored_is_refused(old: Kernel, library: Path, ram: Ram) -> None:
    handed, head = handed_over(old, 1)
    with update(library, ram, handed) as kernel:
        assert Set(kernel).restore(head) == 0
        assert kernel.lib.host_restore_folio(head) == 0
        assert Set(kernel).restore(head) == -EINVAL
