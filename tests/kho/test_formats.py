"""The small formats, each against golden bytes made by hand or dumped from a real kernel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kho import block, khotest, memblock
from kho.abi import BLOCKS_MAX, PAGE_SIZE, SCRATCH_DTYPE, block_capacity
from kho.block import read_chain, write_chain
from kho.builder import HandoverBuilder
from kho.errors import FormatError, KhoError, LimitExceeded, OutOfRange
from kho.fdt import Fdt, Node
from kho.handover import Handover
from kho.khotest import KhoTest
from kho.memblock import ReservedRegion
from kho.memory import Buffer, Reader
from kho.metadata import KexecMetadata
from kho.setup_data import KhoData, ScratchArea, find_chains, pack_scratch, read_scratch
from kho.setup_data import read_chain as read_setup_data
from kho.vmalloc import Descriptor, read_area, write_area


class Pages:
    """A buffer and an allocator that leaves gaps."""

    def __init__(self, size: int = 8 << 20) -> None:
        self.memory = Buffer(size)
        self.reader = Reader(self.memory)
        self.next = 0

    def __call__(self) -> int:
        self.next += 2 * PAGE_SIZE
        return self.next


# --- setup_data and scratch ---------------------------------------------------------------------------------

SETUP_GOLDEN = bytes.fromhex("""
0000000000000000 0a000000 20000000 0070520000000000 0010000000000000 00003f3e00000000 3000000000000000
""")
SCRATCH_GOLDEN = bytes.fromhex("""
0000c03900000000 0000800400000000 0000403e00000000 0000000000000000 0000402c00000000 0000800d00000000
""")
AREAS = [ScratchArea(0x39C00000, 0x4800000), ScratchArea(0x3E400000, 0), ScratchArea(0x2C400000, 0xD800000)]


def test_setup_data_golden() -> None:
    entry = KhoData(0x1000, 32, 0x527000, 4096, 0x3E3F0000, 48)
    assert entry.pack() == SETUP_GOLDEN
    memory = Buffer(1 << 20)
    memory.write(0x1000, SETUP_GOLDEN)
    chain = read_setup_data(Reader(memory), 0x1000)
    assert chain.kho == [entry] and chain.entries == [(0x1000, 10, 32)] and not chain.problem


def test_scratch_golden() -> None:
    assert pack_scratch(AREAS) == SCRATCH_GOLDEN
    memory = Buffer(1 << 20)
    memory.write(0x2000, SCRATCH_GOLDEN)
    assert read_scratch(Reader(memory), 0x2000, 48) == AREAS
    assert AREAS[0].end == 0x3E400000
    for size in (0, 15, 47, 49, SCRATCH_DTYPE.itemsize * 5000):
        with pytest.raises(FormatError):
            read_scratch(Reader(memory), 0x2000, size)
    with pytest.raises(OutOfRange):
        read_scratch(Reader(memory), (1 << 20) - 16, 48)


def test_setup_data_chains_that_do_not_end() -> None:
    memory = Buffer(1 << 20)
    memory.write(0x1000, KhoData(0x1000, 32, 0, 0, 0, 0).pack(following=0x1000))
    chain = read_setup_data(Reader(memory), 0x1000)
    assert "does not end" in chain.problem and len(chain.kho) == 1
    chain = read_setup_data(Reader(memory), (1 << 20) - 8)
    assert "not in RAM" in chain.problem and not chain.entries
    for number in range(100):
        memory.write(0x10000 + number * 16, KhoData(0, 0, 0, 0, 0, 0).pack(0x10010 + number * 16)[:16])
    chain = read_setup_data(Reader(memory), 0x10000)
    assert len(chain.entries) == 64 and chain.problem


def test_entries_are_found_without_boot_params() -> None:
    memory = Buffer(1 << 20)
    memory.write(0x3008, SETUP_GOLDEN)
    (chain,) = find_chains(Reader(memory))
    assert chain.boot_params is None and chain.kho[0].fdt_addr == 0x527000
    memory.write(0x8042, b"HdrS")
    memory.write(0x8042 + 0x4E, (0x3008).to_bytes(8, "little"))
    (chain,) = find_chains(Reader(memory))
    assert chain.boot_params == 0x8042 - 0x202


# --- kexec-metadata -----------------------------------------------------------------------------------------

METADATA_GOLDEN = b"\1\0\0\0" + b"7.2.13-kho".ljust(65, b"\0") + b"\2\0\0\0"


def test_metadata_golden() -> None:
    assert len(METADATA_GOLDEN) == 73
    metadata = KexecMetadata("7.2.13-kho", 2)
    assert metadata.pack() == METADATA_GOLDEN
    assert KexecMetadata.unpack(METADATA_GOLDEN) == metadata
    assert KexecMetadata.unpack(METADATA_GOLDEN + b"more") == metadata


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\1\0\0", "only 3"),
        (b"\2\0\0\0" + METADATA_GOLDEN[4:], "version 2"),
        (METADATA_GOLDEN[:-1], "72 bytes"),
        (b"\1\0\0\0" + b"x" * 69, "no end"),
    ],
)
def test_metadata_damaged(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        KexecMetadata.unpack(data)


# --- blocks -------------------------------------------------------------------------------------------------


def test_capacities() -> None:
    assert block_capacity(80) == 51 and block_capacity(64) == 63


def test_block_golden() -> None:
    pages = Pages()
    addresses = write_chain(pages.memory, pages, [bytes([n]) * 80 for n in range(1, 53)], 80)
    first, second = (pages.memory.read(phys, PAGE_SIZE).tobytes() for phys in addresses)
    assert first[:16] == addresses[1].to_bytes(8, "little") + (51).to_bytes(8, "little")
    assert first[16:96] == b"\1" * 80 and first[-80:] == b"\x33" * 80
    assert second[:16] == bytes(8) + b"\1" + bytes(7)
    assert second[16:] == b"\x34" * 80 + bytes(PAGE_SIZE - 96)


@given(st.integers(0, 200), st.sampled_from([64, 80, 100]))
def test_chain_round_trip(count: int, size: int) -> None:
    pages = Pages()
    entries = [number.to_bytes(4, "little").ljust(size, b"e") for number in range(count)]
    addresses = write_chain(pages.memory, pages, entries, size)
    chain = read_chain(pages.reader, addresses[0] if addresses else 0, size, {}, "test")
    assert [entry for _, entry in chain.entries] == entries
    assert [item.phys for item in chain.blocks] == addresses
    assert chain.complete and not chain.lost
    for phys, entry in chain.entries:
        assert pages.memory.read(phys, size).tobytes() == entry


def test_chain_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LimitExceeded):
        write_chain(Buffer(PAGE_SIZE), lambda: 0, [bytes(4000)] * (BLOCKS_MAX + 1), 4000)
    with pytest.raises(ValueError, match="80 bytes"):
        write_chain(Buffer(PAGE_SIZE), lambda: 0, [bytes(79)], 80)
    pages = Pages()
    addresses = write_chain(pages.memory, pages, [b"x" * 80] * 60 * 5, 80)
    monkeypatch.setattr(block, "BLOCKS_MAX", 3)
    chain = read_chain(pages.reader, addresses[0], 80, {}, "test")
    assert len(chain.blocks) == 3 and "more than 3" in chain.bad_links[0][0]


@given(st.binary(min_size=8, max_size=24), st.integers(0, 4095))
def test_chain_with_noise(noise: bytes, where: int) -> None:
    pages = Pages()
    addresses = write_chain(pages.memory, pages, [b"x" * 80] * 120, 80)
    pages.memory.write(addresses[1] + where % (PAGE_SIZE - 24), noise)
    chain = read_chain(pages.reader, addresses[0], 80, {}, "test")
    assert 1 <= len(chain.blocks) <= 3 and len(chain.entries) <= 153


# --- vmalloc ------------------------------------------------------------------------------------------------


def test_vmalloc_golden() -> None:
    """The descriptor and the chunk of a recorded memfd of four folios."""
    assert Descriptor(0x4DC000, 1, 1, 0).pack() == bytes.fromhex("00c04d0000000000 01000000 0100 0000")
    memory = Buffer(1 << 20)
    memory.write(0x4000, bytes(8) + (0x6000).to_bytes(8, "little"))
    area = read_area(Reader(memory), Descriptor(0x4000, 1, 1, 0), 1)
    assert area.chunks == [0x4000] and area.blocks.tolist() == [0x6000] and not area.problems


@pytest.mark.parametrize("count", [0, 1, 510, 511, 512, 1021, 1022, 1023])
def test_vmalloc_chunks_as_linux_makes_them(count: int) -> None:
    pages = Pages(16 << 20)
    blocks = [4 * PAGE_SIZE + number * PAGE_SIZE for number in range(count)]
    pages.next = 8 << 20
    descriptor, chunks = write_area(pages.memory, pages, blocks)
    assert len(chunks) == (count // 511 + 1 if count else 0)
    area = read_area(pages.reader, descriptor, count)
    assert not area.problems and area.blocks.tolist() == blocks and area.chunks == chunks


def test_vmalloc_with_larger_blocks() -> None:
    pages = Pages()
    pages.memory.write(0x100000, b"A" * 0x4000)
    pages.memory.write(0x200000, b"B" * 0x4000)
    descriptor, _ = write_area(pages.memory, pages, [0x200000, 0x100000], order=2)
    assert descriptor.total_pages == 8
    area = read_area(pages.reader, descriptor, 8)
    assert not area.problems
    assert area.read(pages.reader, 0x4001).tobytes() == b"B" * 0x4000 + b"A"


@pytest.mark.parametrize(
    ("descriptor", "total", "message"),
    [
        (Descriptor(0x4000, 1, 1, 52), 1, "order"),
        (Descriptor(0x4000, 2, 1, 0), 1, "instead of 1"),
        (Descriptor(0x4008, 1, 1, 0), 1, "aligned"),
        (Descriptor(1 << 40, 1, 1, 0), 1, "not in RAM"),
        (Descriptor(0, 1, 1, 0), 1, "0 blocks"),
        (Descriptor(0x4000, 1 << 31, 1, 0), 1 << 31, "more than RAM"),
        (Descriptor(0x4000, 2, 1, 0), 2, "1 blocks"),
        (Descriptor(0x4000, 2, 1, 1), 2, "not aligned"),
        (Descriptor(0x8000, 1, 1, 0), 1, "cycle"),
        (Descriptor(0xA000, 1, 1, 0), 1, "zero between"),
    ],
)
def test_vmalloc_damaged(descriptor: Descriptor, total: int, message: str) -> None:
    memory = Buffer(1 << 20)
    memory.write(0x4000, bytes(8) + (0x7000).to_bytes(8, "little"))
    memory.write(0x8000, (0x8000).to_bytes(8, "little"))
    memory.write(0xA000, bytes(16) + (0x7000).to_bytes(8, "little"))
    area = read_area(Reader(memory), descriptor, total)
    assert any(message in problem for problem, _ in area.problems), area.problems


# --- memblock and kho_test ----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text("abcdefgh", min_size=1, max_size=15), st.integers(0, 1 << 63)), max_size=8,
                unique_by=lambda item: item[0]))  # fmt: skip
def test_memblock_round_trip(items: list[tuple[str, int]]) -> None:
    regions = [ReservedRegion(name, number, number // 2) for name, number in items]
    assert memblock.unpack(memblock.pack(regions)) == regions


def test_memblock_damaged() -> None:
    good = Fdt.parse(memblock.pack([ReservedRegion("a", 1, 2), ReservedRegion("b", 1, 2)]))
    changes: list[Callable[[Node], object]] = [
        lambda root: root.properties.update(compatible=b"memblock-v2\0"),
        lambda root: root.children[0].properties.update(compatible=b"x\0"),
        lambda root: root.children[1].properties.pop("size"),
        lambda root: root.children[1].properties.update(start=b"1234"),
        lambda root: setattr(root.children[1], "name", "a"),
    ]
    for change in changes:
        root = Fdt.parse(good.write()).root
        change(root)
        with pytest.raises(FormatError):
            memblock.unpack(Fdt.packed(root).write())


def test_kho_test_layout() -> None:
    """By hand: what lib/test_kho.c writes, property by property."""
    root = Fdt.parse(khotest.pack(KhoTest(3, 0x12345678, Descriptor(0x5000, 1, 1, 0)))).root
    assert root.properties == {"compatible": b"kho-test-v1\0", "magic": b"\x21\x4f\x48\x4b"}
    (data,) = root.children
    assert data == Node(
        "data",
        {
            "nr_folios": b"\3\0\0\0",
            "folios_info": bytes.fromhex("0050000000000000 01000000 0100 0000"),
            "csum": b"\x78\x56\x34\x12",
        },
    )


def test_kho_test_damaged() -> None:
    good = khotest.pack(KhoTest(3, 7, Descriptor(0x5000, 1, 1, 0)))
    changes: list[Callable[[Node], object]] = [
        lambda root: root.properties.update(compatible=b"kho-test-v2\0"),
        lambda root: root.properties.update(magic=bytes(4)),
        lambda root: root.children.clear(),
        lambda root: root.children[0].properties.pop("nr_folios"),
        lambda root: root.children[0].properties.update(folios_info=bytes(15)),
        lambda root: root.children[0].properties.update(csum=bytes(8)),
    ]
    for change in changes:
        root = Fdt.parse(good).root
        change(root)
        with pytest.raises(FormatError):
            khotest.unpack(Fdt.packed(root).write())


@pytest.mark.parametrize("orders", [[0], [10, 0, 3], [1, 5, 2, 0, 4] * 5, [0] * 600])
def test_kho_test_with_folios_of_any_order(orders: list[int]) -> None:
    generator = np.random.default_rng(1)
    builder = HandoverBuilder(64 << 20)
    builder.add_test([(order, generator.bytes(PAGE_SIZE << order)) for order in orders])
    built = builder.finish()
    handover = Handover.read(built.memory)
    test = handover.kho_test
    assert test is not None and not handover.findings.items
    assert test.order.tolist() == orders
    assert test.csum_ok(handover.reader) is True
    assert not len(handover.unexplained()[0])
    built.memory.write(int(test.phys[0]) + 5, b"\1\2")
    assert test.csum_ok(handover.reader) is False


def test_builder_has_limits() -> None:
    builder = HandoverBuilder()
    with pytest.raises(LimitExceeded):
        builder.allocate(12)
    with pytest.raises(LimitExceeded):
        builder.add_reserve_mem(("huge", 4000))
    for number in range(200):
        builder.add_subtree(f"subtree-{number}", b"x")
    with pytest.raises(KhoError, match="device tree needs"):
        builder.finish()
