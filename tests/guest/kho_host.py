"""The kernel's KHO code, compiled for the host: `kho_host.c` stands in for the rest of the kernel.

A `Ram` is physical memory; a `Kernel` is one boot on it. The memory outlives the kernel, so a test hands over
from one to the next as a kexec does. A kernel's global variables are those of the loaded library: closing it
unloads the library, and the next one starts afresh.
"""

from __future__ import annotations

import _ctypes
import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import build

FLAGS = (
    "-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64", "-O1", "-g0", "-std=gnu17", "-fPIC", "-shared",
    *build.NO_SANITIZER, *build.WARNINGS, *build.REPRODUCIBLE, "-Wl,--no-gc-sections",
    "-iquote", "kernels/include", "-iquote", "kernels/mm", "-iquote", "kho/guest", "-iquote", "tests/guest",
    "-include", "tests/guest/kho_init.h", '-DRELEASE_HEADER="kho_release.h"',
)  # fmt: skip
KHO_FILES = (
    "adopt", "block", "claim", "fdt", "fdt_edit", "fdt_write", "kho", "kho_init", "kimage", "metadata",
    "owner",
    "populate", "preserve", "radix", "restore", "scratch", "subtree", "vmalloc",
)  # fmt: skip
HOSTED = build.Target(
    name="test-kho",
    output="build/tests/libkho.so",
    sources=(
        "tests/guest/kho_host.c", *(f"kho/guest/{name}.c" for name in KHO_FILES),
        "kernels/mm/memblock*.c", "kernels/mm/folio.c", "kernels/mm/reserve_mem.c", "kernels/lib/kstrtox.c",
        "kernels/lib/string.c",
    ),
    inputs=("kernels/include/*.h", "kernels/mm/*.h", "kho/guest/*.h", "tests/guest/kho_*.h",
            "tests/guest/hosted_release.h"),
    flags=FLAGS,
)  # fmt: skip

PAGE = 4096
MIB = 1 << 20
DIRECT_MAP = 0x5100_0000_0000
SCRATCH_ALIGN = 4 * MIB

Words = NDArray[np.uint64]
_U64 = ctypes.c_uint64


class Ram:
    """Physical memory from address 0: a file in memory. Also what `kho` reads from the host's side."""

    def __init__(self, size: int, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """`ranges` is what of it is RAM, as (start, end)."""
        self.size = size
        self.ranges = list(ranges or [(0, 0x9F000), (MIB, size)])
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        self.bytes = np.frombuffer(self.map, dtype=np.uint8)

    def read(self, phys: int, size: int) -> NDArray[np.uint8]:
        return self.bytes[phys : phys + size]

    def write(self, phys: int, data: bytes | NDArray[np.uint8]) -> None:
        self.bytes[phys : phys + len(data)] = np.frombuffer(bytes(data), dtype=np.uint8)

    def words(self, phys: int, count: int = 512) -> Words:
        """A view: what is written to it is in memory."""
        return self.bytes[phys : phys + 8 * count].view("<u8")

    def close(self) -> None:
        """Views keep the bytes until they are gone themselves."""
        del self.bytes, self.map
        os.close(self.fd)

    def __enter__(self) -> Ram:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


_POINTER_RESULTS = (
    "kho_alloc_preserve", "kho_restore_pages", "kho_restore_vmalloc", "kho_block_it_reserve_entry",
    "kho_block_it_read_entry", "kho_block_it_prev", "vmalloc", "host_vmalloc_huge", "host_vmap",
    "reserve_mem_get",
)  # fmt: skip
_U64_RESULTS = (
    "host_warnings", "host_alloc", "host_alloc_pages", "host_root_fdt", "host_tree_root", "host_regions",
    "host_sizeof_set", "host_set_head", "host_set_blocks", "kho_restored_pages",
)  # fmt: skip
_BOOL_RESULTS = ("kho_is_enabled", "is_kho_boot", "host_scratch", "kho_scratch_overlap")


class Library:
    """The loaded library. Every integer argument is passed as 64 bits."""

    def __init__(self, path: Path) -> None:
        self._lib = ctypes.CDLL(str(path))
        self._unloaded = False

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._lib, name)
        if name in _POINTER_RESULTS or name in _U64_RESULTS:
            function.restype = _U64
        elif name in _BOOL_RESULTS:
            function.restype = ctypes.c_bool
        elif name == "host_log":
            function.restype = ctypes.c_char_p
        elif name in ("host_outstanding", "host_managed"):
            function.restype = ctypes.c_int64

        def call(*args: Any) -> Any:
            return function(*(_U64(a & (2**64 - 1)) if isinstance(a, int) else a for a in args))

        setattr(self, name, call)
        return call

    def unload(self) -> None:
        """Once is enough; nothing may be called afterwards."""
        if not self._unloaded:
            _ctypes.dlclose(self._lib._handle)
        self._unloaded = True


class Kernel:
    """One boot. `lib` has the kernel's functions and those of `kho_host.c`. There is one at a time."""

    _running: Kernel | None = None

    def __init__(self, library: Path, ram: Ram, pages: tuple[int, int] | None = None) -> None:
        """The page allocator takes pages from `pages`, (start, end)."""
        if Kernel._running is not None:
            Kernel._running.close()  # of a test that failed
        self.ram = ram
        self.lib = Library(library)
        Kernel._running = self
        flat = [value for start, end in ram.ranges for value in (start, end - start)]
        first, last = pages or (2 * MIB, ram.size)
        if self.lib.host_start(ram.fd, ram.size, (_U64 * len(flat))(*flat), len(ram.ranges), first, last):
            raise OSError("no room for the direct map in this process")

    def close(self) -> None:
        self.lib.unload()
        if Kernel._running is self:
            Kernel._running = None

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    # ---- boot ----

    def param(self, name: str, value: str) -> int:
        """0 or -errno."""
        return int(self.lib.host_param(name.encode(), value.encode()))

    def boot(
        self,
        kho: str = "on",
        scratch: str = "8M,0,0",
        reserve_mem: Sequence[str] = (),
        populate: tuple[int, int, int, int] | None = None,
    ) -> None:
        """Start-up as far as KHO is concerned, up to the late initcalls."""
        if populate is not None:
            self.lib.kho_populate(*populate)
        assert self.param("kho", kho) == 0
        if scratch:
            assert self.param("kho_scratch", scratch) == 0
        self.lib.host_memory_known()
        for value in reserve_mem:
            assert self.param("reserve_mem", value) == 0, value
        self.lib.kho_memory_init()
        self.lib.host_memory_given()
        assert self.lib.host_initcall(b"kho_init") == 0
        assert self.lib.host_initcall(b"reserve_mem_init") == 0

    def handover(self) -> tuple[int, int, int, int]:
        """What goes into the next kernel's setup_data; the scratch array is put where its segment goes."""
        out = (_U64 * 4)()
        error = self.lib.host_fill_kimage(out)
        assert error == 0, error
        fdt, at, size, _ = out
        array = b"".join(a.to_bytes(8, "little") + s.to_bytes(8, "little") for a, s in self.scratch())
        assert len(array) == size
        self.ram.write(at, array)
        return fdt, PAGE, at, size

    # ---- what there is ----

    def scratch(self) -> list[tuple[int, int]]:
        areas: list[tuple[int, int]] = []
        out = (_U64 * 2)()
        while self.lib.host_scratch(len(areas), out):
            areas.append((out[0], out[1]))
        return areas

    def regions(self, *, reserved: bool) -> list[tuple[int, int, int]]:
        """(start, end, flags) of memblock's regions."""
        pointer = ctypes.c_void_p()
        count = self.lib.host_regions(ctypes.byref(pointer), reserved)
        if not count:
            return []
        raw = ctypes.string_at(pointer.value or 0, count * 24)
        table = np.frombuffer(raw, dtype=[("base", "<u8"), ("size", "<u8"), ("flags", "<u4"), ("pad", "<u4")])
        return [(int(r["base"]), int(r["base"] + r["size"]), int(r["flags"])) for r in table]

    def page(self, phys: int) -> tuple[int, int, int, int]:
        """flags, refcount, private, order of a struct page."""
        out = (_U64 * 4)()
        self.lib.host_page(phys // PAGE, out)
        return out[0], out[1], out[2], out[3]

    def private_words(self) -> Words:
        """page->private of every page."""
        out = np.zeros(self.ram.size // PAGE, dtype=np.uint64)
        self.lib.host_private(out.ctypes.data, len(out))
        return out

    @property
    def log(self) -> str:
        return str(self.lib.host_log().decode())

    @property
    def warnings(self) -> int:
        """How often the kernel said WARNING."""
        return int(self.lib.host_warnings())

    @property
    def outstanding(self) -> int:
        """Allocations that were not given back."""
        return int(self.lib.host_outstanding())

    def phys(self, pointer: int) -> int:
        """Physical address of a pointer into the direct map."""
        assert DIRECT_MAP <= pointer < DIRECT_MAP + self.ram.size, f"{pointer:#x} is not in the direct map"
        return pointer - DIRECT_MAP


class Guarded:
    """Bytes that end where a page begins that nobody may touch: a step too far kills the process."""

    def __init__(self, capacity: int) -> None:
        self._size = -(-capacity // PAGE) * PAGE
        self._map = mmap.mmap(-1, self._size + PAGE)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(self._start + self._size), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")

    def put(self, data: bytes) -> int:
        """Address of the data, which end at the guard."""
        at = self._start + self._size - len(data)
        ctypes.memmove(at, data, len(data))
        return at

    def get(self, size: int) -> bytes:
        """The last `size` bytes."""
        return ctypes.string_at(self._start + self._size - size, size)


def error_of(pointer: int) -> int:
    """-errno of an error pointer, 0 of any other."""
    return pointer - 2**64 if pointer >= 2**64 - 4095 else 0
