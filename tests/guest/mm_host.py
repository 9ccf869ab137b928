"""The kernel's memory management, compiled for the host: `mm_host.c` stands in for the rest of the kernel."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kernels import build

PAGE = 4096
MIB, GIB = 1 << 20, 1 << 30
NOINIT, KERN, SCRATCH = 0x10, 0x20, 0x40
ZERO, MOVABLE, NOWARN, COMP = 1, 2, 4, 8
PG_BUDDY, PG_HEAD, PG_TAIL = 1, 4, 8
MAX_ORDER = 10
REGION = np.dtype([("base", "<u8"), ("size", "<u8"), ("flags", "<u8")])
"""struct memblock_region; its u32 flags and the padding behind them are read as one word and masked"""
ARRAY_WORDS = {"memory": 0, "reserved": 4}
"""offset of a struct memblock_type in struct memblock, in words: cnt, max, regions, name"""

Region = tuple[int, int, int]
"""start, end, flags"""


def target(bottom_up: bool) -> build.Target:
    name = "new" if bottom_up else "old"
    return build.Target(
        name=f"test-mm-{name}",
        output=f"build/tests/libmm-{name}.so",
        sources=("tests/guest/mm_host.c",),
        inputs=("kernels/include/*.h", "kernels/mm/*.c", "kernels/mm/*.h", "tests/guest/*_release.h"),
        flags=(
            "-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64", "-O1", "-g0", "-std=gnu17", "-fPIC",
            "-shared", *build.NO_SANITIZER, *build.WARNINGS, *build.REPRODUCIBLE,
            "-iquote", "kernels/include", "-iquote", "tests/guest", '-DRELEASE_HEADER="mm_release.h"',
            f"-DMM_BOTTOM_UP={int(bottom_up)}",
        ),
    )  # fmt: skip


class Panic(Exception):
    """The kernel called panic(); the message is its own."""


class Mm:
    """The code with its own physical memory. `reset` makes it as new."""

    def __init__(self, library: Path, bottom_up: bool, direct_map: int | None = None) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.bottom_up = bottom_up
        self.lib.host_memblock.restype = ctypes.c_void_p
        self.lib.host_message.restype = ctypes.c_char_p
        self.lib.host_try.restype = ctypes.c_bool
        self.direct_map = direct_map or 0x5000_0000_0000 + 0x800_0000_0000 * bottom_up
        if self.lib.host_init():
            raise OSError("no room for the direct map in this process")
        self.reset()

    def reset(self, regions: int = 128) -> None:
        """`regions` is the size of the first arrays of memblock, at most 128."""
        self.lib.host_reset(ctypes.c_uint64(regions))

    def call(self, name: str, *args: int) -> int:
        """What the function returns as a signed number of 64 bits. Raises `Panic`."""
        values = (ctypes.c_uint64 * 4)(*args)
        result = ctypes.c_uint64()
        if not self.lib.host_try(getattr(self.lib, name), values, ctypes.byref(result)):
            raise Panic(self.lib.host_message().decode())
        return int(ctypes.c_int64(result.value).value)

    def error(self, name: str, *args: int) -> int:
        """What a function that returns int returns."""
        return int(ctypes.c_int32(self.call(name, *args) & 0xFFFFFFFF).value)

    def true(self, name: str, *args: int) -> bool:
        """What a function that returns bool returns."""
        return bool(self.call(name, *args) & 0xFF)

    @property
    def warnings(self) -> int:
        return int(self.lib.host_warnings())

    # ---- memblock ----------------------------------------------------------------------------------------

    def _words(self) -> ctypes.Array[ctypes.c_uint64]:
        return (ctypes.c_uint64 * 10).from_address(self.lib.host_memblock())

    def set_resize(self, on: bool) -> None:
        ctypes.c_bool.from_address(self.lib.host_memblock() + 72).value = on

    def set_limit(self, limit: int) -> None:
        self._words()[8] = limit

    def array(self, which: str) -> npt.NDArray[np.void]:
        """All regions of an array, a copy."""
        at = ARRAY_WORDS[which]
        cnt, _, regions = (int(v) for v in self._words()[at : at + 3])
        out = np.frombuffer(ctypes.string_at(regions, cnt * REGION.itemsize), REGION).copy()
        out["flags"] &= 0xFFFFFFFF
        return out

    def regions(self, which: str) -> list[Region]:
        return [(int(r["base"]), int(r["base"] + r["size"]), int(r["flags"])) for r in self.array(which)]

    def array_place(self, which: str) -> tuple[int, int] | None:
        """Where an array is in physical memory, (start, end); None while it is the first one."""
        at = ARRAY_WORDS[which]
        _, maximum, regions = (int(v) for v in self._words()[at : at + 3])
        start = regions - self.direct_map
        if not 0 <= start < 1 << 43:
            return None
        return start, start + -(-maximum * REGION.itemsize // PAGE) * PAGE

    def noinit(self, ranges: Sequence[tuple[int, int]]) -> int:
        """memblock_reserve_noinit_ranges of (start, size)."""
        table = np.zeros(max(len(ranges), 1), REGION)
        for i, (start, size) in enumerate(ranges):
            table[i] = (start, size, 0)
        return self.noinit_table(table, len(ranges))

    def noinit_table(self, table: npt.NDArray[np.void], count: int) -> int:
        return self.error("memblock_reserve_noinit_ranges", table.ctypes.data, count)

    # ---- pages -------------------------------------------------------------------------------------------

    def start(self, memory: Sequence[Region], reserved: Sequence[Region] = ()) -> None:
        """A machine with this memory, up to kmalloc. Regions are (start, end, flags)."""
        for start, end, flags in memory:
            assert self.error("memblock_add", start, end - start) == 0
            if flags & SCRATCH:
                assert self.error("memblock_mark_kho_scratch", start, end - start) == 0
        for start, end, flags in reserved:
            assert self.error("memblock_reserve", start, end - start) == 0
            if flags & NOINIT:
                assert self.error("memblock_reserved_mark_noinit", start, end - start) == 0
        self.call("host_start")

    def alloc(self, order: int, gfp: int = 0) -> int | None:
        """Page frame number, or None."""
        page = self.call("alloc_pages", gfp | NOWARN, order)
        return self.pfn(page) if page else None

    def pfn(self, page: int) -> int:
        return self.call("host_pfn", page)

    def page(self, pfn: int) -> int:
        return self.call("host_page", pfn)

    def free(self, pfn: int, order: int) -> None:
        self.call("__free_pages", self.page(pfn), order)

    def read_page(self, pfn: int) -> tuple[int, int, int, int]:
        """flags, refcount, order, private."""
        out = (ctypes.c_uint64 * 4)()
        self.lib.host_read_page(ctypes.c_uint64(pfn), out)
        return out[0], int(ctypes.c_int64(out[1]).value), out[2], out[3]

    def read(self, phys: int, size: int) -> bytes:
        return ctypes.string_at(self.direct_map + phys, size)

    def write(self, phys: int, data: bytes) -> None:
        ctypes.memmove(self.direct_map + phys, data, len(data))

    @property
    def free_pages(self) -> int:
        return self.call("nr_free_pages")


@functools.cache
def load(bottom_up: bool) -> Mm:
    """The library of a placement; one for the process, because its memory is at fixed addresses."""
    path = build.build(build.project_root(), target(bottom_up))
    assert path is not None
    return Mm(path, bottom_up)
