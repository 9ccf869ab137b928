"""Recordings of frames: classic pcap files, as Wireshark and tcpdump read and write them.

Written with nanoseconds, so that a time in the file is a tick. Read in either byte order, with micro- or
nanoseconds. Format: draft-ietf-opsawg-pcap, "PCAP Capture File Format".
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from emu.errors import ImageError
from emu.files import read_file

MAGIC_MICROSECONDS, MAGIC_NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
ETHERNET = 1
SNAPLEN = 65535
_SECOND = 1_000_000_000
_BYTES_MAX = 64 << 20
"""A recording becomes part of a machine's description."""


def read(path: Path) -> tuple[tuple[int, bytes], ...]:
    """All frames, each with the nanoseconds since the first. Raises ImageError."""
    where = str(path)
    data = read_file(path, _BYTES_MAX)
    for order in "<>":
        magic = struct.unpack_from(order + "I", data.ljust(4, b"\0"))[0]
        if magic in (MAGIC_MICROSECONDS, MAGIC_NANOSECONDS):
            break
    else:
        if data[:4] == b"\n\r\r\n":
            raise ImageError("is pcapng; `editcap -F nsecpcap` makes pcap of it", where)
        raise ImageError("is no pcap file", where)
    if len(data) < 24:
        raise ImageError("truncated", where)
    link = struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF
    if link != ETHERNET:
        raise ImageError(f"holds frames of link type {link}, not Ethernet (1)", where)
    unit = 1 if magic == MAGIC_NANOSECONDS else 1000
    frames: list[tuple[int, bytes]] = []
    at = 24
    while at < len(data):
        if at + 16 > len(data):
            raise ImageError(f"truncated after {len(frames)} frames", where)
        seconds, fraction, size, original = struct.unpack_from(order + "4I", data, at)
        if at + 16 + size > len(data):
            raise ImageError(f"truncated after {len(frames)} frames", where)
        if size != original:
            raise ImageError(f"holds only {size} of the {original} bytes of frame {len(frames) + 1}", where)
        frames.append((seconds * _SECOND + fraction * unit, data[at + 16 : at + 16 + size]))
        at += 16 + size
    if not frames:
        raise ImageError("holds no frame", where)
    first = frames[0][0]
    if any(one[0] > two[0] for one, two in itertools.pairwise(frames)):
        raise ImageError("is not in the order of time", where)
    return tuple((when - first, frame) for when, frame in frames)


class Writer:
    """A recording that is being made: `frame` fits `emu.traffic.Traffic.taps`. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises ImageError."""
        self._path = path
        self.count = 0
        try:
            self._file: BinaryIO = path.open("wb")
            self._file.write(struct.pack("<IHHiIII", MAGIC_NANOSECONDS, 2, 4, 0, 0, SNAPLEN, ETHERNET))
        except OSError as e:
            raise ImageError(f"cannot be written: {e.strerror}", str(path)) from None

    def frame(self, tick: int, sent_by_card: bool, frame: bytes) -> None:
        """One more frame, at its tick. Raises ImageError."""
        try:
            self._file.write(
                struct.pack("<4I", tick // _SECOND & 0xFFFF_FFFF, tick % _SECOND, len(frame), len(frame))
            )
            self._file.write(frame)
        except OSError as e:
            with contextlib.suppress(OSError):  # it is said once
                self._file.close()
            raise ImageError(f"cannot be written: {e.strerror}", str(self._path)) from None
        self.count += 1

    def close(self) -> None:
        """All is written. Raises ImageError."""
        try:
            self._file.close()
        except OSError as e:
            raise ImageError(f"cannot be written: {e.strerror}", str(self._path)) from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
