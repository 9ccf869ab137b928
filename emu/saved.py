"""Machines in files: versioned, sparse, compressed, independent of the host.

Layout, all little-endian:

    0   8   magic "LUEMU-M1"
    8   8   bytes of the state document
    16  8   number of pages
    24  8   bytes of the compressed part
    32  32  SHA-256 of the state document and the compressed part
    64      the state document: JSON, UTF-8, bytes as {"hex": "..."}
    then    one zstd frame: page numbers (u32 each), then the pages' contents (4096 bytes each)

A page number is the page's offset in RAM divided by 4096; RAM above 4 GiB follows that below.
Pages that are not listed are zero. Nothing here needs an engine: decoders read such a file anywhere.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from emu.errors import AddressError, ImageError
from emu.files import is_regular, read_file, replacing
from emu.memory import PAGE, U8Array, low_split, page_ranges, ram_ranges

MAGIC = b"LUEMU-M1"
_HEAD = struct.Struct("<8sQQQ32s")
_PAGES_MAX = 1 << 28
_FILE_BYTES_MAX = 1 << 40


@dataclass(frozen=True)
class SavedMachine:
    """A file's contents: ``state`` as `Machine.state` gives it, page numbers (n,), pages (n, 4096)."""

    state: dict[str, Any]
    numbers: npt.NDArray[np.uint32]
    pages: U8Array


def _encode(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return {"hex": bytes(value).hex()}
    raise TypeError(f"not plain data: {type(value).__name__}")


def _decode(item: dict[str, Any]) -> Any:
    if item.keys() == {"hex"}:
        return bytes.fromhex(item["hex"])
    return item


def write(path: Path, state: dict[str, Any], numbers: npt.NDArray[np.uint32], pages: U8Array) -> None:
    """Write a machine; the file appears complete or not at all."""
    document = json.dumps(state, sort_keys=True, separators=(",", ":"), default=_encode).encode()
    packer = zstandard.ZstdCompressor(level=1)
    packed = packer.compress(numbers.astype("<u4").tobytes() + pages.tobytes())
    digest = hashlib.sha256(document + packed).digest()
    with replacing(path) as part, part.open("wb") as f:
        f.write(_HEAD.pack(MAGIC, len(document), len(numbers), len(packed), digest))
        f.write(document)
        f.write(packed)


def is_saved(path: Path) -> bool:
    """Whether the file begins like a saved machine."""
    try:
        if not is_regular(path):
            return False
        with path.open("rb") as f:
            return f.read(8) == MAGIC
    except OSError:
        return False


def read(path: Path) -> SavedMachine:
    """Read and verify a file. Raises ImageError."""
    where = str(path)
    data = read_file(path, _FILE_BYTES_MAX)
    if data[:8] != MAGIC:
        if data[:7] == MAGIC[:7]:
            raise ImageError("saved by another version of luemu, which this one does not read", where)
        raise ImageError("not a saved machine", where)
    if len(data) < _HEAD.size:
        raise ImageError("truncated", where)
    _, document_size, count, packed_size, digest = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + document_size + packed_size or count > _PAGES_MAX:
        raise ImageError(
            f"{len(data)} bytes long, not {_HEAD.size + document_size + packed_size}: truncated?", where
        )
    document = data[_HEAD.size : _HEAD.size + document_size]
    packed = data[_HEAD.size + document_size :]
    if hashlib.sha256(document + packed).digest() != digest:
        raise ImageError("damaged: its checksum does not match", where)
    try:
        state = json.loads(document, object_hook=_decode)
        size = zstandard.get_frame_parameters(packed).content_size
        if size != count * (PAGE + 4):  # before room is made for it
            raise ValueError(f"{size} bytes of pages, not {count * (PAGE + 4)}")
        raw = zstandard.ZstdDecompressor().decompress(packed)
        pages = int(state["description"]["memory"]) // PAGE
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, zstandard.ZstdError) as e:
        raise ImageError(f"damaged: {e!r}", where) from None
    numbers = np.frombuffer(raw, "<u4", count)
    if len(raw) != count * (PAGE + 4) or (count and int(numbers.max()) >= pages):
        raise ImageError("damaged: its parts do not fit together", where)
    contents = np.frombuffer(raw, np.uint8, offset=4 * count).reshape(count, PAGE)
    return SavedMachine(state, numbers, contents)


class SavedMemory:
    """RAM of a saved machine for the decoders: `ranges` and `read`, without an engine."""

    def __init__(self, machine: SavedMachine) -> None:
        self._size = int(machine.state["description"]["memory"])
        self._row = {int(n): i for i, n in enumerate(machine.numbers.tolist())}
        self._pages = machine.pages

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """RAM as sorted (start, end) pairs of physical addresses."""
        return ram_ranges(self._size)

    def read(self, phys: int, size: int) -> U8Array:
        """``size`` bytes at ``phys``, read-only; AddressError when not all of it is RAM."""
        for start, end in self.ranges:
            if start <= phys and phys + size <= end and size >= 0:
                break
        else:
            raise AddressError(f"{size} bytes at {phys:#x} are not RAM", f"{phys:#x}")
        at = phys if phys < 1 << 32 else phys - (1 << 32) + low_split(self._size)
        first, last = at // PAGE, (at + max(size, 1) - 1) // PAGE
        out = np.zeros((last - first + 1, PAGE), np.uint8)
        for i in range(first, last + 1):
            row = self._row.get(i)
            if row is not None:
                out[i - first] = self._pages[row]
        view = out.reshape(-1)[at - first * PAGE :][:size]
        view.flags.writeable = False
        return view

    def populated(self) -> list[tuple[int, int]]:
        """Physical (start, end) of pages that hold anything, so that a search can skip the rest."""
        return page_ranges(sorted(self._row), low_split(self._size))
