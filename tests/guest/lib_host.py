"""The kernel's library, printk, parameters and initramfs as a shared library of the host (`lib_host.c`)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernels import build

SOURCES = (
    "tests/guest/lib_host.c", "kernels/lib/string.c", "kernels/lib/kstrtox.c", "kernels/lib/vsprintf.c",
    "kernels/lib/random.c", "kernels/lib/pattern.c", "kernels/kernel/printk.c", "kernels/kernel/params.c",
    "kernels/fs/cpio.c", "kernels/fs/ramfs.c",
)  # fmt: skip
FLAGS = (
    "-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64", "-O2", "-g0", "-std=gnu17", "-fPIC", "-shared",
    "-fno-builtin", "-iquote", "tests/guest/hosted", "-iquote", "kernels/include", "-iquote", "kho/guest",
    "-Ikernels/include", '-DRELEASE_HEADER="../releases/new.h"', "-Wl,-Bsymbolic",
    "-Wl,-T,tests/guest/lib_host.ld", *build.NO_SANITIZER, *build.WARNINGS, *build.REPRODUCIBLE,
)  # fmt: skip
HOSTED = build.Target(
    name="test-lib",
    output="build/tests/liblib.so",
    sources=SOURCES,
    inputs=(
        "kernels/include/*.h",
        "kernels/releases/*.h",
        "tests/guest/hosted/*.h",
        "tests/guest/lib_host.ld",
    ),
    flags=FLAGS,
)
COMMAND_LINE_MAX = 2047


@dataclass(frozen=True)
class Node:
    """A file of the tree in memory."""

    mode: int
    data: bytes


class Lib:
    """The library; strings go in and out as bytes."""

    def __init__(self, path: Path) -> None:
        self.c = lib = ctypes.CDLL(str(path))
        p, u64, text = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p
        for name in ("host_console", "host_calls", "host_file_name"):
            getattr(lib, name).restype = text
        lib.host_fail_after.argtypes = [ctypes.c_long]
        lib.host_allocated.restype = ctypes.c_long
        lib.memparse.argtypes, lib.memparse.restype = [text, p], u64
        lib.kstrtou64.argtypes = [text, ctypes.c_uint, p]
        lib.kstrtobool.argtypes = [text, p]
        lib.cmdline_find.argtypes, lib.cmdline_find.restype = [text, p, u64], ctypes.c_bool
        lib.cpio_unpack.argtypes = [p, u64]
        lib.file_lookup.argtypes, lib.file_lookup.restype = [text], p
        lib.file_create.argtypes, lib.file_create.restype = [text, ctypes.c_uint32, p, u64], p
        lib.host_file_child.argtypes, lib.host_file_child.restype = [p, u64], p
        lib.host_file_size.argtypes, lib.host_file_size.restype = [p], u64
        lib.host_file_mode.argtypes, lib.host_file_mode.restype = [p], ctypes.c_uint32
        lib.host_file_data.argtypes, lib.host_file_data.restype = [p], p
        lib.host_file_name.argtypes = [p]
        lib.get_random_u64.restype = u64

    # ---- text

    def format(self, fmt: str, *args: int | bytes | None, room: int = 512) -> bytes:
        """What snprintf() leaves in `room` bytes; checks its result and that it kept to them."""
        values = [
            ctypes.c_char_p(a) if a is None or isinstance(a, bytes) else ctypes.c_uint64(a % 2**64)
            for a in args
        ]
        buf = ctypes.create_string_buffer(b"\xee" * (room + 16), room + 16)
        n = self.c.snprintf(buf, ctypes.c_size_t(room), fmt.encode(), *values)
        assert buf.raw[room:] == b"\xee" * 16, f"snprintf({fmt!r}) wrote behind its buffer"
        if not room:
            return b"%d" % n
        text = buf.raw[:room].split(b"\0")[0]
        assert len(text) == min(n, room - 1), f"snprintf({fmt!r}) returned {n} and wrote {text!r}"
        return text

    def console(self) -> str:
        """What was printed since the last call."""
        text = bytes(self.c.host_console()).decode("latin-1")
        self.c.host_console_clear()
        return text

    # ---- command line

    def set_command_line(self, text: bytes) -> None:
        assert len(text) <= COMMAND_LINE_MAX and b"\0" not in text
        target = (ctypes.c_char * (COMMAND_LINE_MAX + 1)).in_dll(self.c, "boot_command_line")
        target.raw = text.ljust(COMMAND_LINE_MAX + 1, b"\0")

    def parse(self, text: bytes, early: bool) -> list[tuple[bytes, bytes]]:
        """Calls of the recording parameters: (name, value)."""
        self.set_command_line(b"")
        self.c.parse_early_params()  # a kernel begins with this pass
        self.set_command_line(text)
        self.c.host_calls_clear()
        (self.c.parse_early_params if early else self.c.parse_params)()
        calls = bytes(self.c.host_calls()).split(b"\2")[:-1]
        return [(c.split(b"\1")[0], c.split(b"\1")[1]) for c in calls]

    def find(self, text: bytes, name: bytes, room: int = 64) -> bytes | None:
        self.set_command_line(text)
        buf = ctypes.create_string_buffer(b"\xee" * (room + 8), room + 8)
        if not self.c.cmdline_find(name, buf, room):
            return None
        assert buf.raw[room:] == b"\xee" * 8, "cmdline_find wrote behind its buffer"
        return buf.raw[:room].split(b"\0")[0]

    # ---- files

    def unpack(self, archive: bytes) -> int:
        """Unpack into an empty tree. The archive ends where readable memory ends: a read beyond it is a
        crash."""
        self.c.host_new_tree()
        self._archive = Fenced(archive)
        return int(self.c.cpio_unpack(self._archive.address, len(archive)))

    def files(self) -> dict[str, Node]:
        """The whole tree, by path."""
        found: dict[str, Node] = {}
        todo = [("", self.c.file_lookup(b"/"))]
        while todo:
            path, f = todo.pop()
            size = self.c.host_file_size(f)
            data = ctypes.string_at(self.c.host_file_data(f), size) if size else b""
            found[path or "/"] = Node(self.c.host_file_mode(f), data)
            n = 0
            while child := self.c.host_file_child(f, n):
                name = bytes(self.c.host_file_name(child)).decode("utf-8", "surrogateescape")
                todo.append((f"{path}/{name}", child))
                n += 1
        return found


class Fenced:
    """Bytes that end where readable memory ends (and begin at a multiple of 4 bytes)."""

    def __init__(self, data: bytes) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        room = -(-max(len(data), 1) // 4096) * 4096
        self._size = room + 4096
        base = libc.mmap(None, self._size, 3, 0x22, -1, 0)
        assert base not in (None, 2**64 - 1), "no memory for a fenced buffer"
        self._base: int = base
        assert libc.mprotect(base + room, 4096, 0) == 0
        # up to three bytes of slack behind the data keep its beginning aligned
        self.address: int = base + (room - len(data)) // 4 * 4
        ctypes.memmove(self.address, data, len(data))
        self._munmap = libc.munmap

    def __del__(self) -> None:
        self._munmap(self._base, self._size)


@cache
def load() -> Lib:
    """Compiled when needed, once a process."""
    path = build.build(build.project_root(), HOSTED)
    assert path is not None
    return Lib(path)
