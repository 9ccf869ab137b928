"""Files that hold physical memory: raw images, the same compressed with zstd, ELF cores, and bare FDT blobs.

The format is told by the file's first bytes, never by its name. A raw image is memory from physical address
0; an ELF core has one PT_LOAD per piece of RAM with its address in p_paddr, as QEMU's dump-guest-memory and
/proc/vmcore write it. Files are mapped, not read. A compressed image is unpacked into a sparse mapping: pages
that are zero take no memory. Whatever a file claims, at most `IMAGE_SIZE_MAX` bytes of address space and
`POPULATED_MAX` bytes of memory are used for it.

Other formats (saved machines) join through `OPENERS`; this file does not know them.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import zstandard

from kho import fdt
from kho.abi import PAGE_SIZE
from kho.errors import ImageError
from kho.memory import Bytes, PhysicalMemory, merge

IMAGE_SIZE_MAX: Final = 2 << 40
POPULATED_MAX: Final = 16 << 30
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE: Final = range(0x184D2A50, 0x184D2A60)
ZSTD_WINDOW_MAX: Final = 1 << 27
UNPACK_STEP: Final = 1 << 20
ELF_MAGIC: Final = b"\x7fELF"
ELF_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
ELF_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
ELF_PROGRAMS_MAX: Final = 65536
ET_CORE: Final = 4
# QEMU calls the machine by the mode its processor is in
EM_386: Final = 3
EM_X86_64: Final = 62
PT_LOAD: Final = 1
PN_XNUM: Final = 0xFFFF
BLOB_FILE_MAX: Final = 1 << 20
EXTENTS_MAX: Final = 1 << 20
MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)  # not in Python 3.11's mmap

OPENERS: list[Callable[[Path], PhysicalMemory | None]] = []
"""Asked in turn before the formats known here; one that does not know the file returns None."""


@dataclass
class MappedMemory:
    """RAM as views of mapped files: (start, array) pieces, sorted and disjoint."""

    pieces: list[tuple[int, Bytes]]
    extents: list[tuple[int, int]] | None = None
    """Outside of these (start, end) pairs all bytes are zero; None: not known."""
    ranges: Sequence[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.ranges = [(start, start + len(data)) for start, data in self.pieces]

    def read(self, phys: int, size: int) -> Bytes:
        """A view; the caller stays inside one range."""
        for start, data in self.pieces:
            if start <= phys and phys + size <= start + len(data):
                return data[phys - start : phys - start + size]
        raise ImageError(f"{size} bytes are outside the image", f"{phys:#x}")

    def populated(self) -> Iterable[tuple[int, int]]:
        """Where bytes can be other than zero."""
        return self.ranges if self.extents is None else self.extents

    def limited(self, ram: Iterable[tuple[int, int]]) -> MappedMemory:
        """The same without what is not RAM by a firmware memory map; holes keep no address."""
        pieces = []
        for low, high in merge(ram):
            for start, data in self.pieces:
                a, b = max(low, start), min(high, start + len(data))
                if a < b:
                    pieces.append((a, data[a - start : b - start]))
        return MappedMemory(sorted(pieces, key=lambda piece: piece[0]), self.extents)


@dataclass
class Image:
    """What a file turned out to be. Exactly one of `memory` and `blob` is set."""

    path: Path
    format: str
    """``raw``, ``elf-core``, ``fdt``, each with ``zstd:`` in front when compressed, or ``other``."""
    memory: PhysicalMemory | None = None
    blob: bytes | None = None


def open_image(path: Path | str) -> Image:
    """Open a file by its contents. ImageError when it cannot be read or is none of the known formats."""
    path = Path(path)
    for opener in OPENERS:
        memory = opener(path)
        if memory is not None:
            return Image(path, "other", memory=memory)
    data, extents = _map_file(path)
    prefix = ""
    if data[:4].tobytes() == ZSTD_MAGIC or _is_skippable(data):
        prefix = "zstd:"
        data, extents = _unpack(data, path)
        if not len(data):
            raise ImageError("the compressed file is empty", str(path))
    head = data[:4].tobytes()
    if head == ELF_MAGIC:
        return Image(path, prefix + "elf-core", memory=_elf_core(data, extents, path))
    if head == struct.pack(">I", fdt.MAGIC) and len(data) <= BLOB_FILE_MAX:
        return Image(path, prefix + "fdt", blob=data.tobytes())
    if head[:4] == b"KDUM" or bytes(data[:8]) == b"makedump":
        raise ImageError(
            "kdump-compressed and makedumpfile images are not supported; save an ELF core", str(path)
        )
    return Image(path, prefix + "raw", memory=MappedMemory([(0, data)], extents))


def _map_file(path: Path) -> tuple[Bytes, list[tuple[int, int]] | None]:
    """The file as an array, and the (start, end) pairs that are not holes of a sparse file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("is a directory", str(path))
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
            raise ImageError("not a regular file", str(path))
        if status.st_size == 0:
            raise ImageError("the file is empty", str(path))
        if status.st_size > IMAGE_SIZE_MAX:
            raise ImageError(f"the file has more than {IMAGE_SIZE_MAX} bytes", str(path))
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            extents = _data_extents(file.fileno(), status.st_size)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ImageError(reason or str(error), str(path)) from error
    return np.frombuffer(mapping, dtype=np.uint8), extents


def _data_extents(descriptor: int, size: int) -> list[tuple[int, int]] | None:
    """Where a file has data; None when the file system cannot tell or there are too many pieces."""
    extents: list[tuple[int, int]] = []
    at = 0
    try:
        while at < size and len(extents) < EXTENTS_MAX:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
            extents.append((start, at))
    except OSError as error:
        # ENXIO: nothing but a hole up to the end
        return extents if error.errno == errno.ENXIO else None
    return extents if at >= size else None


# --- zstd ---------------------------------------------------------------------------------------------------


def _is_skippable(data: Bytes) -> bool:
    return len(data) >= 8 and int.from_bytes(data[:4].tobytes(), "little") in ZSTD_SKIPPABLE


def _frames_bound(data: Bytes, path: Path) -> int:
    """Walk the frames and blocks of a zstd file (RFC 8878, section 3) without unpacking anything.

    The library does not tell a truncated frame from a complete one when it streams. Returns an upper bound of
    the unpacked size.
    """
    at = bound = 0
    size = len(data)
    while at < size:
        head = data[at : at + 18].tobytes()
        if len(head) >= 8 and int.from_bytes(head[:4], "little") in ZSTD_SKIPPABLE:
            at += 8 + int.from_bytes(head[4:8], "little")
            if at > size:
                raise ImageError("the zstd file ends inside a skippable frame", str(path))
            continue
        try:
            parameters = zstandard.get_frame_parameters(head)
            at += zstandard.frame_header_size(head)
        except zstandard.ZstdError as error:
            raise ImageError(f"bad zstd frame at byte {at}: {error}", str(path)) from error
        last = False
        while not last:
            if at + 3 > size:
                raise ImageError("the zstd file is truncated", str(path))
            block = int(data[at]) | int(data[at + 1]) << 8 | int(data[at + 2]) << 16
            last, kind, length = bool(block & 1), block >> 1 & 3, block >> 3
            if kind == 3:
                raise ImageError(f"bad zstd block at byte {at}", str(path))
            bound += length if kind < 2 else 128 << 10
            at += 3 + (1 if kind == 1 else length)
        at += 4 if parameters.has_checksum else 0
        if at > size:
            raise ImageError("the zstd file is truncated", str(path))
    return bound


def _unpack(data: Bytes, path: Path) -> tuple[Bytes, list[tuple[int, int]]]:
    """Unpack into a sparse mapping; returns the bytes and the (start, end) pairs that are not all zero."""
    bound = min(_frames_bound(data, path), IMAGE_SIZE_MAX)
    room = -(-max(bound, 1) // UNPACK_STEP) * UNPACK_STEP
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        out = np.frombuffer(mmap.mmap(-1, room, flags=flags), dtype=np.uint8)
    except (OSError, ValueError, OverflowError) as error:
        raise ImageError(f"no address space for an image of {room} bytes: {error}", str(path)) from error
    size = populated = 0
    extents: list[tuple[int, int]] = []
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    try:
        with decompressor.stream_reader(data.data, read_across_frames=True) as reader:
            while piece := _read_full(reader, UNPACK_STEP):
                if size + len(piece) > room:
                    raise ImageError(f"the image unpacks to more than {room} bytes", str(path))
                for start, end in _nonzero_pages(piece):
                    out[size + start : size + end] = np.frombuffer(piece, dtype=np.uint8)[start:end]
                    extents.append((size + start, size + end))
                    populated += end - start
                if populated > POPULATED_MAX:
                    raise ImageError(
                        f"the image has more than {POPULATED_MAX} bytes that are not zero", str(path)
                    )
                size += len(piece)
    except zstandard.ZstdError as error:
        raise ImageError(f"bad zstd data: {error}", str(path)) from error
    out = out[:size]
    out.flags.writeable = False
    return out, merge(extents)


def _read_full(reader: zstandard.ZstdDecompressionReader, size: int) -> bytes:
    parts = []
    left = size
    while left and (part := reader.read(left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _nonzero_pages(piece: bytes) -> list[tuple[int, int]]:
    """(start, end) of the runs of pages in `piece` that have a byte other than zero."""
    whole = len(piece) // PAGE_SIZE * PAGE_SIZE
    found: list[tuple[int, int]] = []
    if whole:
        words = np.frombuffer(piece, dtype=np.uint64, count=whole // 8)
        used = words.reshape(-1, PAGE_SIZE // 8).any(axis=1)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], used, [False])).astype(np.int8)))
        found = [(a * PAGE_SIZE, b * PAGE_SIZE) for a, b in edges.reshape(-1, 2).tolist()]
    if any(piece[whole:]):
        found.append((whole, len(piece)))
    return found


# --- ELF cores ----------------------------------------------------------------------------------------------


def _elf_core(data: Bytes, extents: list[tuple[int, int]] | None, path: Path) -> MappedMemory:
    where = str(path)
    if len(data) < ELF_HEADER.size:
        raise ImageError("the ELF header is truncated", where)
    (ident, kind, machine, _, _, program_offset, section_offset, _, _, program_size, program_count,
    section_size,
     _, _) = ELF_HEADER.unpack(data[: ELF_HEADER.size].tobytes())  # fmt: skip
    if ident[4] != 2 or ident[5] != 1:
        raise ImageError("the ELF file is not 64-bit little-endian", where)
    if kind != ET_CORE:
        raise ImageError("the ELF file is not a core: it is a program, not memory", where)
    if machine not in (EM_386, EM_X86_64):
        raise ImageError(f"the ELF core is of machine {machine}, not x86-64", where)
    if program_count == PN_XNUM:  # the real count is in sh_info of the first section header
        section = data[section_offset : section_offset + 64].tobytes()
        if not section_offset or section_size < 64 or len(section) < 64:
            raise ImageError("the ELF section header with the number of segments is missing", where)
        program_count = int.from_bytes(section[44:48], "little")
    if program_size != ELF_PROGRAM.size or program_count > ELF_PROGRAMS_MAX:
        raise ImageError(f"the ELF core has {program_count} segment headers of {program_size} bytes", where)
    table = data[program_offset : program_offset + program_size * program_count].tobytes()
    if len(table) < program_size * program_count:
        raise ImageError("the ELF segment headers are truncated", where)
    segments = []
    for values in ELF_PROGRAM.iter_unpack(table):
        segment_kind, _, offset, _, phys, file_size, _, _ = values
        if segment_kind != PT_LOAD or not file_size:
            continue
        if offset + file_size > len(data):
            raise ImageError(f"the ELF core is truncated: the segment at {phys:#x} is not in the file", where)
        if phys + file_size > 1 << 64:
            raise ImageError(f"the segment at {phys:#x} passes the end of the address space", where)
        segments.append((phys, offset, file_size))
    if not segments:
        raise ImageError("the ELF core has no memory in it", where)
    pieces: list[tuple[int, Bytes]] = []
    known: list[tuple[int, int]] = []
    covered = 0
    # vmcore describes the kernel's text a second time: what was covered already is left out
    for phys, offset, size in sorted(segments):
        start, end = max(phys, covered), phys + size
        if start >= end:
            continue
        first = offset + start - phys
        pieces.append((start, data[first : first + end - start]))
        covered = end
        for low, high in extents or ():
            a, b = max(low, first), min(high, first + end - start)
            if a < b:
                known.append((a - first + start, b - first + start))
    return MappedMemory(pieces, None if extents is None else merge(known))
