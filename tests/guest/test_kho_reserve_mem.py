"""`reserve_mem=`: regions that stay where they are."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from kho.fdt import Fdt
from tests.guest.kho_cases import (
    EBUSY,
    EINVAL,
    ENOMEM,
    OLD_PAGES,
    RAM_SIZE,
    Populate,
    decode,
    update,
)
from tests.guest.kho_host import MIB, PAGE, Kernel, Ram


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", EINVAL), ("1M", EINVAL), ("1M:4096", EINVAL), ("1M:4096:", EINVAL), (":4096:x", EINVAL),
        ("0:4096:x", EINVAL), ("1M::x", EINVAL), ("1M:3000:x", EINVAL), ("1M:4096:   ", EINVAL),
        ("1M:4096:abcdefghijklmnop", EINVAL), ("1G:4096:x", ENOMEM), ("16E:4096:x", EINVAL),
    ],
)  # fmt: skip
def test_malformed_reserve_mem(library: Path, ram: Ram, value: str, error: int) -> None:
    with Kernel(library, ram) as kernel:
        kernel.lib.host_memory_known()
        assert kernel.param("reserve_mem", value) == -error
        assert kernel.lib.reserve_mem_get(0) == 0


def region(kernel: Kernel, n: int) -> tuple[int, int, str]:
    pointer = kernel.lib.reserve_mem_get(n)
    raw = ctypes.string_at(pointer, 32)
    return (
        int.from_bytes(raw[:8], "little"),
        int.from_bytes(raw[8:16], "little"),
        raw[16:].split(b"\0")[0].decode(),
    )


def test_eight_regions_and_no_more(library: Path, ram: Ram) -> None:
    with Kernel(library, ram) as kernel:
        kernel.lib.host_memory_known()
        assert kernel.param("reserve_mem", "100:0:abcdefghijklmno") == 0
        assert kernel.param("reserve_mem", "1M:4096:abcdefghijklmno") == -EBUSY
        for n in range(7):
            assert kernel.param("reserve_mem", f"8K:2M:r{n}") == 0
        assert kernel.param("reserve_mem", "8K:4096:more") == -EBUSY
        regions = [region(kernel, n) for n in range(8)]
        assert kernel.lib.reserve_mem_get(8) == 0
        assert regions[0][1:] == (100, "abcdefghijklmno")
        assert all(start % (2 * MIB) == 0 for start, _, _ in regions[1:])
        assert len({start // PAGE for start, _, _ in regions}) == 8


def test_a_region_survives_a_chain(library: Path, ram: Ram) -> None:
    handed: Populate | None = None
    places = set()
    for count in range(4):
        with Kernel(library, ram, (4 * MIB * (count + 1), 4 * MIB * (count + 2))) as kernel:
            kernel.boot(populate=handed, reserve_mem=["100K:8192:one", "3:64:two"])
            start, size, _ = region(kernel, 0)
            places.add((start, region(kernel, 1)[0]))
            if count == 0:
                ram.bytes[start : start + size] = 0x77
            assert (ram.read(start, size) == 0x77).all()
            handed = kernel.handover()
            decoded = decode(ram, handed)
            assert [(r.name, r.phys, r.size) for r in decoded.reserve_mem] == [
                ("one", start, 100 * 1024),
                ("two", region(kernel, 1)[0], 3),
            ]
            assert not list(decoded.findings)
    assert len(places) == 1


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("64K:4096:other", "memblock: FDT 'memblock' has no child 'other': -1"),
        ("128K:4096:region", "memblock: KHO reserve-mem 'region' has wrong size (0x10000 != 0x20000)"),
        ("64K:16M:region", "memblock: KHO reserve-mem 'region' has wrong alignment (0x1000000, "),
    ],
)
def test_a_region_that_cannot_be_revived_is_new_and_outside_scratch(
    library: Path, ram: Ram, value: str, line: str
) -> None:
    """Scratch would not do: the next kernel could not be given what is in it."""
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot(reserve_mem=["64K:4096:region"])
        handed = kernel.handover()
        (scratch, scratch_size), *_ = kernel.scratch()
    with update(library, ram, handed, [value]) as kernel:
        assert line in kernel.log
        start, size, _ = region(kernel, 0)
        assert start and (start + size <= scratch or start >= scratch + scratch_size)
        decoded = decode(ram, kernel.handover())
        assert decoded.reserve_mem[0].phys == start and not list(decoded.findings)


@pytest.mark.parametrize("what", ["root", "node", "start", "size", "scratch", "fdt", "blob"])
def test_a_damaged_memblock_blob(library: Path, ram: Ram, what: str) -> None:
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot(reserve_mem=["64K:4096:region"])
        handed = kernel.handover()
        scratch = kernel.scratch()[0][0]
        old_place = region(kernel, 0)[0]
    root = Fdt.parse(ram.read(handed[0], PAGE).tobytes())
    entry = root.root.child("memblock")
    assert entry is not None
    at = entry.u64("preserved-data")
    fdt = Fdt.parse(ram.read(at, PAGE).tobytes())
    node = fdt.root.children[0]
    expected = {
        "root": "memblock: FDT 'memblock' is incompatible with 'memblock-v1': 1",
        "node": "memblock: Node 'region' is incompatible with 'reserve-mem-v1': 1",
        "start": "memblock: Node 'region' has no start or size",
        "size": "memblock: Node 'region' has no start or size",
        "scratch": "memblock: KHO reserve-mem 'region' is not in RAM outside scratch",
        "fdt": "memblock: FDT 'memblock' is incompatible with 'memblock-v1': -9",
        "blob": "memblock: failed to retrieve FDT 'memblock' from KHO: -22",
    }[what]
    if what == "root":
        fdt.root.properties["compatible"] = b"memblock-v2\0"
    elif what == "node":
        node.properties["compatible"] = b"reserve-mem-v2\0"
    elif what in ("start", "size"):
        node.properties[what] = bytes(4)
    elif what == "scratch":
        node.properties["start"] = scratch.to_bytes(8, "little")
    ram.write(at, bytes(4) if what == "fdt" else fdt.write(PAGE))
    if what == "blob":
        entry.properties["preserved-data"] = (RAM_SIZE).to_bytes(8, "little")
        ram.write(handed[0], root.write(PAGE))
    with update(library, ram, handed, ["64K:4096:region"]) as kernel:
        assert expected in kernel.log.splitlines()
        assert region(kernel, 0)[0] not in (0, old_place), "the old place is still reserved by the tree"


def test_a_region_without_its_keys_is_not_given_away(library: Path, ram: Ram) -> None:
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot(reserve_mem=["64K:65536:region"])
        start = region(kernel, 0)[0]
        kernel.lib.host_unpreserve_pages(start, 16)
        handed = kernel.handover()
    with update(library, ram, handed, ["64K:65536:region"]) as kernel:
        assert region(kernel, 0)[0] == start
        assert any(a <= start and start + 65536 <= b for a, b, _ in kernel.regions(reserved=True))


def test_no_memory_outside_scratch_for_a_new_region(library: Path, ram: Ram) -> None:
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot()
        handed = kernel.handover()
    with update(library, ram, handed, ["1G:4096:huge", "4K:4096:small"]) as kernel:
        assert "memblock: no memory outside scratch for reserve_mem 'huge'" in kernel.log
        assert [r.name for r in decode(ram, kernel.handover()).reserve_mem] == ["small"]
