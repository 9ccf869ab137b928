"""The page cache, compiled for the host: `pagecache_host.c` with the memory management of `mm_host.c`."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np

from kernels import build
from tests.guest.mm_host import MIB, SCRATCH, Mm

MEMORY = ((MIB, 12 * MIB, 0), (12 * MIB, 24 * MIB, SCRATCH), (24 * MIB, 48 * MIB, 0))


class PageCache(Mm):
    """A tree of folios, and a file in memory; `fresh` makes both, and all of memory, as new."""

    def __init__(self, library: Path) -> None:
        super().__init__(library, bottom_up=False, direct_map=0x5400_0000_0000)

    def fresh(self) -> None:
        self.reset()
        self.start(MEMORY)
        self.fail(0)
        assert self.error("host_new") == 0

    def fail(self, n: int) -> None:
        """The nth allocation from now on fails, once; 0: none."""
        self.call("host_fail", n)

    def walk(self, first: int, end: int) -> list[tuple[int, int, int, int]]:
        """(address, index, order, number) of folios that have pages in [first, end)."""
        out = np.empty((8192, 4), np.uint64)
        count = self.call("host_walk", first, end, out.ctypes.data, len(out))
        return [(a, i, o, n) for a, i, o, n in out[:count].tolist()]

    def write_file(self, data: bytes, pos: int) -> int:
        buffer = ctypes.create_string_buffer(data, len(data))
        return self.call("host_write", ctypes.addressof(buffer), len(data), pos)

    def read_file(self, size: int, pos: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        count = self.call("host_read", ctypes.addressof(buffer), size, pos)
        return buffer.raw[:count]

    def file_state(self) -> tuple[int, int, int]:
        """Pages: all, pinned, in scratch."""
        out = (ctypes.c_uint64 * 3)()
        self.call("host_state", ctypes.addressof(out))
        return out[0], out[1], out[2]


@functools.cache
def load() -> PageCache:
    """One for the process, because its memory is at fixed addresses."""
    path = build.build(
        build.project_root(),
        build.Target(
            name="test-pagecache",
            output="build/tests/libpagecache.so",
            sources=("tests/guest/mm_host.c", "tests/guest/pagecache_host.c"),
            inputs=("kernels/include/*.h", "kernels/mm/*.c", "kernels/mm/*.h", "tests/guest/*_release.h"),
            flags=(
                "-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64", "-O1", "-g0", "-std=gnu17", "-fPIC",
                "-shared", *build.NO_SANITIZER, *build.WARNINGS, *build.REPRODUCIBLE,
                "-iquote", "kernels/include", "-iquote", "tests/guest", "-iquote", "kho/guest",
                '-DRELEASE_HEADER="pagecache_release.h"',
            ),
        ),
    )  # fmt: skip
    assert path is not None
    return PageCache(path)
