"""Files of every format, whole and damaged: memory comes out, or one typed error."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import kho.image
from kho.errors import ImageError, KhoError, NotFound, OutOfRange
from kho.handover import Handover
from kho.image import ELF_HEADER, ELF_PROGRAM, MappedMemory, open_image
from kho.memory import Buffer, Bytes, Reader, merge, runs
from tests.luo.images import RECORDED, build
from tests.oracles import require

PAGE = 4096


def data_of(path: Path) -> bytes:
    memory = open_image(path).memory
    assert memory is not None
    return b"".join(memory.read(start, end - start).tobytes() for start, end in memory.ranges)


def elf(segments: list[tuple[int, bytes]], kind: int = 4, machine: int = 62, extra: int = 0) -> bytes:
    """A core: a note segment, then PT_LOADs with p_paddr."""
    count = len(segments) + 1
    offset = ELF_HEADER.size + ELF_PROGRAM.size * count
    headers = [ELF_PROGRAM.pack(4, 0, offset, 0, 0, 0, 0, 0)]
    body = b""
    for phys, data in segments:
        at = offset + len(body)
        headers.append(
            ELF_PROGRAM.pack(
                1, 0, at, (0xFFFF888000000000 + phys) % (1 << 64), phys, len(data), len(data) + extra, 0
            )
        )
        body += data
    ident = b"\x7fELF\2\1\1" + bytes(9)
    header = ELF_HEADER.pack(
        ident, kind, machine, 1, 0, ELF_HEADER.size, 0, 0, ELF_HEADER.size, ELF_PROGRAM.size, count, 64, 0, 0
    )
    return header + b"".join(headers) + body


SPARSE = bytes(PAGE * 3) + b"a" * PAGE + bytes(PAGE * 300) + b"end"


def test_raw(tmp_path: Path) -> None:
    path = tmp_path / "misleading.zst"
    path.write_bytes(SPARSE)
    image = open_image(path)
    assert image.format == "raw" and data_of(path) == SPARSE
    assert image.memory is not None and image.memory.ranges == [(0, len(SPARSE))]
    assert not image.memory.read(0, 8).flags.writeable


def test_raw_sparse_file_of_a_terabyte(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"here")
    memory = open_image(path).memory
    assert memory is not None and memory.read(1 << 39, 5).tobytes() == b"here\0"
    assert isinstance(memory, MappedMemory) and memory.extents is not None
    with pytest.raises(NotFound):  # holes are not searched
        Handover.read(memory)


@pytest.mark.parametrize("with_size", [True, False])
def test_zstd(tmp_path: Path, with_size: bool) -> None:
    path = tmp_path / "image"
    packer = zstandard.ZstdCompressor(write_checksum=True, write_content_size=with_size)
    path.write_bytes(packer.compress(SPARSE) if with_size else stream(packer, SPARSE))
    image = open_image(path)
    assert image.format == "zstd:raw" and data_of(path) == SPARSE
    assert isinstance(image.memory, MappedMemory)
    assert image.memory.extents == [(3 * PAGE, 4 * PAGE), (304 * PAGE, 304 * PAGE + 3)]
    assert sum(len(view) for _, view in Reader(image.memory).scan()) == PAGE + 3


def stream(packer: zstandard.ZstdCompressor, data: bytes) -> bytes:
    writer = packer.compressobj()
    return writer.compress(data) + writer.flush()


def test_zstd_frames_and_skippable_frames(tmp_path: Path) -> None:
    path = tmp_path / "image"
    packer = zstandard.ZstdCompressor()
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"hello"
    path.write_bytes(skippable + packer.compress(b"one") + skippable + stream(packer, b"two"))
    assert data_of(path) == b"onetwo"


@pytest.mark.parametrize("keep", [5, 10, 100, -1, -4, -5])
def test_zstd_truncated(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "image"
    packed = stream(zstandard.ZstdCompressor(write_checksum=True), os.urandom(100_000))
    path.write_bytes(packed[:keep])
    with pytest.raises(ImageError):
        open_image(path)


def test_zstd_trailing_garbage(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(zstandard.ZstdCompressor().compress(b"abc") + b"garbage")
    with pytest.raises(ImageError, match="frame"):
        open_image(path)


def test_zstd_bomb_of_zeros_costs_address_space_only(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    packed = stream(zstandard.ZstdCompressor(), bytes(64 << 20))
    path.write_bytes(packed * 32)
    assert path.stat().st_size < 200_000
    memory = open_image(path).memory
    assert isinstance(memory, MappedMemory)
    assert memory.ranges == [(0, 2 << 30)] and memory.extents == []


def test_zstd_bomb_that_is_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(zstandard.ZstdCompressor().compress(b"x" * (16 << 20)))
    monkeypatch.setattr(kho.image, "POPULATED_MAX", 4 << 20)
    with pytest.raises(ImageError, match="not zero"):
        open_image(path)
    monkeypatch.undo()
    monkeypatch.setattr(kho.image, "IMAGE_SIZE_MAX", 4 << 20)
    with pytest.raises(ImageError, match="more than"):
        open_image(path)


def test_elf_core(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(elf([(0x100000, b"b" * PAGE), (0, b"a" * PAGE), (5 << 30, b"c" * 100)], extra=PAGE))
    image = open_image(path)
    assert image.format == "elf-core" and image.memory is not None
    assert image.memory.ranges == [(0, PAGE), (0x100000, 0x101000), (5 << 30, (5 << 30) + 100)]
    assert image.memory.read(0x100FFF, 1).tobytes() == b"b"
    with pytest.raises(OutOfRange):
        Reader(image.memory).read(0x100FFF, 2)


def test_elf_core_that_describes_memory_twice(tmp_path: Path) -> None:
    """/proc/vmcore has the kernel's text in a segment of its own besides that of all RAM."""
    path = tmp_path / "core"
    path.write_bytes(elf([(0x2000, b"abcdefgh"), (0x2000, b"abcd"), (0x2004, b"efghIJ")]))
    assert data_of(path) == b"abcdefghIJ"
    memory = open_image(path).memory
    assert memory is not None and Reader(memory).bytes(0x2002, 8) == b"cdefghIJ"


def test_elf_core_in_zstd(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(zstandard.ZstdCompressor().compress(elf([(0x100000, SPARSE)])))
    image = open_image(path)
    assert image.format == "zstd:elf-core"
    assert data_of(path) == SPARSE
    assert image.memory is not None
    scanned = sum(len(view) for _, view in Reader(image.memory).scan())
    assert scanned < 10 * PAGE


def test_elf_with_very_many_segments(tmp_path: Path) -> None:
    path = tmp_path / "core"
    data = bytearray(elf([(number << 20, b"%8d" % number) for number in range(200)]))
    struct.pack_into("<H", data, 56, 0xFFFF)
    struct.pack_into("<Q", data, 40, len(data))
    data += bytes(44) + struct.pack("<I", 201) + bytes(16)
    path.write_bytes(data)
    memory = open_image(path).memory
    assert memory is not None and len(memory.ranges) == 200
    assert memory.read(199 << 20, 8).tobytes() == b"     199"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:20], "truncated"),
        (lambda d: d[:100], "truncated"),
        (lambda d: d[:-1], "truncated"),
        (lambda d: d[:4] + b"\1" + d[5:], "64-bit"),
        (lambda d: d[:16] + b"\2\0" + d[18:], "not a core"),
        (lambda d: d[:18] + b"\xb7\0" + d[20:], "machine"),
        (lambda d: d[:54] + b"\x20\0" + d[56:], "segment headers"),
        (lambda d: d[:56] + b"\0\0" + d[58:], "no memory"),
        (lambda d: d[:56] + b"\xff\xff" + d[58:], "number of segments"),
    ],
)
def test_elf_damaged(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "core"
    path.write_bytes(damage(elf([(0x1000, b"a" * 100)])))  # type: ignore[operator]
    with pytest.raises(ImageError, match=message):
        open_image(path)


def test_elf_segment_beyond_the_address_space(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(elf([((1 << 64) - 10, b"a" * 100)]))
    with pytest.raises(ImageError, match="address space"):
        open_image(path)


def test_fdt_blob() -> None:
    path = RECORDED / "c10-reserve_mem" / "kho-fdt-in.dtb"
    image = open_image(path)
    assert image.format == "fdt" and image.blob == path.read_bytes() and image.memory is None
    handover = Handover.from_blob(image.blob)
    assert handover.bare and handover.fdt_phys is None and handover.tree.root == 0x498000
    assert {s.name: s.size for s in handover.subtrees} == {"memblock": 210, "LUO": 32, "kexec-metadata": 73}


def test_truncated_fdt_blob() -> None:
    """debugfs shows too little of the outgoing FDT once LUO has added its node: that is how these were
    recorded.
    """
    path = next(RECORDED.glob("c1-1x4k/debugfs-out-fdt.bin"))
    image = open_image(path)
    assert image.format == "fdt" and image.blob is not None
    with pytest.raises(KhoError, match="says it has 285 bytes"):
        Handover.from_blob(image.blob)


def test_what_is_no_image(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    packed = tmp_path / "packed"
    packed.write_bytes(zstandard.ZstdCompressor().compress(b""))
    fifo = tmp_path / "fifo"
    dump = tmp_path / "kdump"
    dump.write_bytes(b"KDUMP   " + bytes(100))
    for path, message in (
        (empty, "empty"), (packed, "empty"), (tmp_path / "missing", "No such file"), (tmp_path, "directory"),
        (Path("/dev/null"), "regular"), (dump, "not supported"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=message):
            open_image(path)
    os.mkfifo(fifo)
    before = time.monotonic()
    with pytest.raises(ImageError, match="regular"):
        open_image(fifo)
    assert time.monotonic() - before < 5


HEADS = [b"", b"\x7fELF\2\1\1", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x24", b"\xd0\x0d\xfe\xed"]


@given(st.sampled_from(HEADS),
       st.binary(max_size=300))  # fmt: skip
def test_random_files(tmp_path_factory: pytest.TempPathFactory, head: bytes, rest: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "file"
    path.write_bytes(head + rest)
    try:
        image = open_image(path)
        if image.blob is not None:
            Handover.from_blob(image.blob)
        else:
            assert image.memory is not None
            Handover.read(image.memory)
    except KhoError as error:
        assert error.message


def test_an_opener_for_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "saved"
    path.write_bytes(b"MACHINE")
    built = build()
    monkeypatch.setattr(kho.image, "OPENERS", [lambda p: None, lambda p: built.memory if p == path else None])
    image = open_image(path)
    assert image.format == "other" and image.memory is built.memory
    assert Handover.read(built.memory).fdt_phys == built.fdt_phys


def test_all_formats_give_the_same_handover(tmp_path: Path) -> None:
    built = build()
    raw = built.memory.data.tobytes()
    files = {
        "raw": raw,
        "elf": elf([(0, raw[: 5 << 20]), (5 << 20, raw[5 << 20 :])]),
        "zst": zstandard.ZstdCompressor().compress(raw),
        "elf.zst": zstandard.ZstdCompressor().compress(elf([(0, raw)])),
    }
    seen = set()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        memory = open_image(tmp_path / name).memory
        assert memory is not None
        handover = Handover.read(memory)
        assert not handover.findings.items
        seen.add(
            (
                handover.fdt_phys,
                handover.preserved.keys.tobytes(),
                str(handover.subtrees),
                str(handover.scratch),
            )
        )
    assert len(seen) == 1


# --- the reader ---------------------------------------------------------------------------------------------


class Split:
    """Memory whose ranges touch, so that a read across the seam has to be put together."""

    ranges = ((0, 0x1800), (0x1800, 0x3000), (0x8000, 0x9000))
    data = np.arange(0x9000, dtype=np.uint64).astype(np.uint8)

    def read(self, phys: int, size: int) -> Bytes:
        assert any(start <= phys and phys + size <= end for start, end in self.ranges)
        return self.data[phys : phys + size]


def test_reader_joins_ranges_that_touch() -> None:
    reader = Reader(Split())
    assert reader.ranges == [(0, 0x3000), (0x8000, 0x9000)] and reader.ram_bytes == 0x4000
    assert reader.bytes(0x1700, 0x200) == Split.data[0x1700:0x1900].tobytes()
    pages = reader.pages(np.array([0x1000, 0x2000, 0x8000], dtype=np.uint64))
    assert np.array_equal(pages.reshape(-1)[:0x2000], Split.data[0x1000:0x3000])
    for phys, size in ((0x2FFF, 2), (0x3000, 1), (0x7FFF, 2), (0x9000, 1), (1 << 63, 1 << 63)):
        with pytest.raises(OutOfRange):
            reader.read(phys, size)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40))),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 1 << 63),
)
def test_contains_all_equals_contains(pairs: list[tuple[int, int]], phys: int, size: int) -> None:
    class Ranges:
        ranges = tuple((min(a, b), max(a, b)) for a, b in pairs)

        def read(self, phys: int, size: int) -> Bytes:
            raise AssertionError

    reader = Reader(Ranges())
    for address, length in ((phys, size), (phys % 41, size % 41)):
        many = reader.contains_all(np.array([address], dtype=np.uint64), np.array([length], dtype=np.uint64))
        assert many.tolist() == [reader.contains(address, length)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))))
def test_merge(pairs: list[tuple[int, int]]) -> None:
    out = merge(pairs)
    assert {n for a, b in out for n in range(a, b)} == {n for a, b in pairs for n in range(a, b)}
    assert all(a < b for a, b in out) and all(x[1] < y[0] for x, y in itertools.pairwise(out))


@given(st.lists(st.integers(0, 30)), st.integers(1, 4))
def test_runs(frames: list[int], limit: int) -> None:
    phys = np.array(frames, dtype=np.uint64) * np.uint64(PAGE)
    out = [
        page for start, size in runs(phys, PAGE, limit * PAGE) for page in range(start, start + size, PAGE)
    ]
    assert out == phys.tolist()


def test_buffer() -> None:
    buffer = Buffer(PAGE, 0x5000)
    buffer.write(0x5001, b"abc")
    assert buffer.read(0x5000, 5).tobytes() == b"\0abc\0"
    with pytest.raises(OutOfRange):
        buffer.read(0x4FFF, 2)
    with pytest.raises(OutOfRange):
        buffer.write(0x5FFF, b"ab")


def test_elf_core_of_qemu(tmp_path: Path) -> None:
    """dump-guest-memory of a machine at reset, which has no handover but its firmware in place."""
    program = require("qemu-system-x86_64")
    path = tmp_path / "core"
    command = [str(program), "-machine", "q35", "-m", "64", "-display", "none", "-serial", "none", "-S"]
    command += ["-nodefaults", "-monitor", "stdio"]
    monitor = f"dump-guest-memory {path}\nquit\n"
    subprocess.run(command, input=monitor.encode(), capture_output=True, check=True, timeout=120)
    image = open_image(path)
    assert image.format == "elf-core" and image.memory is not None
    reader = Reader(image.memory)
    assert reader.contains(0, 0xA0000) and reader.contains(1 << 20, 63 << 20)
    assert any(reader.bytes(0xFFFFFFF0, 16)), "the reset vector"
    with pytest.raises(NotFound):
        Handover.read(image.memory)
