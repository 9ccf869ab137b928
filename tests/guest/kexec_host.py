"""The kernel's kexec code, compiled for the host: `kexec_host.c` stands in for the rest of the kernel."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kernels import build

FLAGS = (
    "-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64", "-O1", "-g0", "-std=gnu17", "-fPIC", "-shared",
    *build.NO_SANITIZER, *build.WARNINGS, *build.REPRODUCIBLE,
    "-iquote", "kernels/include", "-iquote", "kho/guest", "-iquote", "luo/guest", "-iquote", "tests/guest",
    '-DRELEASE_HEADER="hosted_release.h"',
)  # fmt: skip
HOSTED = build.Target(
    name="test-kexec",
    output="build/tests/libkexec.so",
    sources=(
        "tests/guest/kexec_host.c", "kernels/kernel/kexec.c", "kernels/kernel/kexec_file.c",
        "kernels/kernel/shutdown.c", "kernels/arch/machine_kexec.c", "kernels/arch/relocate.S",
        "kernels/lib/sha256.c", build.PURGATORY_BYTES,
    ),
    inputs=(
        "kernels/include/*.h", "kho/guest/*.h", "luo/guest/*.h", "kernels/purgatory/*.h",
        "tests/guest/hosted_release.h",
    ),
    flags=FLAGS,
    needs=("purgatory",),
)  # fmt: skip

PAGE = 4096
MIB = 1 << 20
DIRECT_MAP = 0x1000_0000_0000
DESTINATION, INDIRECTION, DONE, SOURCE = 1, 2, 4, 8
SETUP_AT = 0x1F1


@dataclass
class Segment:
    """Where a segment goes: ``size`` bytes at ``start``, the first ``contents`` of them from the file."""

    start: int
    size: int
    contents: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass
class Image:
    head: int
    start: int
    kernel: int
    fdt: int
    code: int
    pgd: int
    segments: list[Segment]


@dataclass
class BzImage:
    """A bzImage with what a loader looks at; ``patch`` replaces bytes of the finished file."""

    payload: bytes = b"kernel" * 1000
    init_size: int = 0x10000
    alignment: int = 0x200000
    preferred: int = 0x1000000
    cmdline_size: int = 2047
    setup_sects: int = 4
    version: int = 0x20F
    loadflags: int = 1
    xloadflags: int = 3
    relocatable: int = 1
    jump: int = 0x6A
    syssize: int | None = None
    patch: dict[int, bytes] = field(default_factory=dict)

    def build(self) -> bytes:
        payload = self.payload.ljust(-(-len(self.payload) // 16) * 16, b"\0")
        data = bytearray(((self.setup_sects or 4) + 1) * 512) + payload

        def put(at: int, form: str, *values: int) -> None:
            struct.pack_into("<" + form, data, at, *values)

        put(0x1F1, "B", self.setup_sects)
        put(0x1F4, "I", len(payload) // 16 if self.syssize is None else self.syssize)
        put(0x1FE, "H", 0xAA55)
        put(0x200, "BB", 0xEB, self.jump)
        data[0x202:0x206] = b"HdrS"
        put(0x206, "H", self.version)
        put(0x210, "BB", 0xFF, self.loadflags)
        put(0x214, "I", 0x100000)
        put(0x22C, "I", 0x7FFFFFFF)
        put(0x230, "IBBHI", self.alignment, self.relocatable, 21, self.xloadflags, self.cmdline_size)
        put(0x258, "QI", self.preferred, self.init_size)
        for at, value in self.patch.items():
            data[at : at + len(value)] = value
        return bytes(data)


class Kexec:
    """The code with its own physical memory, which is the same for every test of a process."""

    def __init__(self, library: Path) -> None:
        lib = ctypes.CDLL(str(library))
        lib.kexec_file_load.argtypes = [
            ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p,
        ]  # fmt: skip
        lib.host_log.restype = lib.host_shutdown.restype = ctypes.c_char_p
        lib.host_outstanding.restype = ctypes.c_long
        lib.host_fail_after.argtypes = [ctypes.c_long]
        for name in ("host_break", "host_set_rsdp"):
            getattr(lib, name).argtypes = [ctypes.c_uint64]
        lib.host_set_pages.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
        lib.kexec_is_loaded.restype = lib.host_lock.restype = ctypes.c_bool
        if lib.host_init():
            raise OSError("no room for the direct map in this process")
        self.lib = lib
        self.reset()

    def reset(
        self,
        memory: Sequence[tuple[int, int]] = ((0, 0x9F000), (MIB, 255 * MIB)),
        scratch: Sequence[tuple[int, int]] | None = None,
        fdt: int = 0x123000,
        pages: tuple[int, int] | None = None,
    ) -> None:
        """RAM as (start, size); with `scratch` KHO is on. Pages are allocated from `pages`, (start, end)."""
        self.lib.host_fail_after(-1)
        self.lib.host_break(2**64 - 1)
        self.lib.host_unlock()
        self.lib.kexec_unload()
        self.lib.host_clear_log()
        self.lib.host_set_memory(self._ranges(memory), len(memory))
        areas = scratch or ()
        self.lib.host_set_kho(ctypes.c_uint64(0 if scratch is None else fdt), self._ranges(areas), len(areas))
        self.lib.host_set_pages(*(pages or (8 << 30, 16 << 30)))

    @staticmethod
    def _ranges(ranges: Sequence[tuple[int, int]]) -> ctypes.Array[ctypes.c_uint64]:
        flat = [v for r in ranges for v in r]
        return (ctypes.c_uint64 * max(len(flat), 1))(*flat)

    def load(self, kernel: bytes, initrd: bytes = b"", cmdline: str | bytes | None = "console=ttyS0") -> int:
        """0 or -errno."""
        text = cmdline.encode() if isinstance(cmdline, str) else cmdline
        return int(self.lib.kexec_file_load(kernel, len(kernel), initrd, len(initrd), text))

    def image(self) -> Image:
        out = (ctypes.c_uint64 * 64)()
        self.lib.host_image(out)
        count = out[6]
        segments = [Segment(*out[7 + 3 * i : 10 + 3 * i]) for i in range(count)]
        head, start, kernel, fdt, code, pgd = out[:6]
        return Image(head, start, kernel, fdt, code, pgd, segments)

    def read(self, phys: int, size: int) -> bytes:
        return ctypes.string_at(DIRECT_MAP + phys, size)

    def word(self, phys: int) -> int:
        return int.from_bytes(self.read(phys, 8), "little")

    def copies(self) -> list[tuple[int, int]]:
        """(destination, source) of every page, as the relocation code would go through the list."""
        image = self.image()
        entry, at, to = image.head, 0, None
        done: list[tuple[int, int]] = []
        while not entry & DONE:
            address = entry & -PAGE
            match entry & (PAGE - 1):
                case 1:
                    to = address
                case 2:
                    at = address
                case 8:
                    assert to is not None, "a source before the first destination"
                    done.append((to, address))
                    to += PAGE
                case flags:
                    raise AssertionError(f"entry {entry:#x} has flags {flags:#x}")
            entry = self.word(at)
            at += 8
            assert at % PAGE or entry & (INDIRECTION | DONE), "the list runs over the end of its page"
        return done

    def list_pages(self) -> set[int]:
        """The pages that the list is in."""
        entry, at, pages = self.image().head, 0, set()
        while not entry & DONE:
            if entry & INDIRECTION:
                at = entry & -PAGE
                pages.add(at)
            entry = self.word(at)
            at += 8
        return pages

    @property
    def log(self) -> str:
        return str(self.lib.host_log().decode())

    @property
    def outstanding(self) -> int:
        """Allocations that were not given back."""
        return int(self.lib.host_outstanding())
