"""The cache's two files, as another service finds them: in the middle of a write, or damaged.

What a service leaves when it is killed is what a kernel leaves when it is replaced: so the files here
are those of processes of this host.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workloads.service import Client, cache, running

PAGE = 4096
FIRST = 64
HEADER = struct.Struct("<8sIIQQQ")
"""struct index_header: magic, version, buckets, store_size, used, cas"""
ITEM = struct.Struct("<QQIIIIHBBI")
"""struct item: next, cas, hash, flags, value_size, expires, key_size, class, state, reserved"""


@dataclass
class Files:
    """Index and store of a service that was killed."""

    index: int
    store: int

    def read(self, fd: int, at: int, size: int) -> bytes:
        return os.pread(fd, size, at)

    def write(self, fd: int, at: int, data: bytes) -> None:
        assert os.pwrite(fd, data, at) == len(data)

    def header(self) -> list[object]:
        return list(HEADER.unpack(self.read(self.index, 0, HEADER.size)))

    def first(self) -> tuple[int, int]:
        """(number of a bucket with an item, offset of the item)."""
        buckets = self.header()[2]
        assert isinstance(buckets, int)
        for n, offset in enumerate(struct.unpack(f"<{buckets}Q", self.read(self.index, PAGE, 8 * buckets))):
            if offset:
                return n, offset
        raise AssertionError("the store is empty")


KEYS = 50


def value(n: int) -> bytes:
    return random.Random(n).randbytes(20 + n * 37)


@contextlib.contextmanager
def left_behind(unfinished: bool = False) -> Iterator[Files]:
    """Files with keys, of a service that is no more; if wanted it dies in the middle of a value."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "s"
        with running([str(cache()), "serve", "1M"], path) as process, Client(path) as c:
            for n in range(KEYS):
                c.say(b"set key%d %d 0 %d\r\n%s\r\n" % (n, n, len(value(n)), value(n)), b"STORED\r\n")
            for n in range(0, KEYS, 5):
                c.say(b"delete key%d\r\n" % n, b"DELETED\r\n")
            if unfinished:
                c.socket.sendall(b"set key1 0 0 1000\r\n" + b"?" * 500)
                with Client(path) as other:  # when this is answered, the other was read
                    other.stat("pid")
            fds = [
                os.open(f"/proc/{process.pid}/fd/{number}", os.O_RDWR)
                for number in (_stat(path, "index_fd"), _stat(path, "store_fd"))
            ]
    try:
        yield Files(*fds)
    finally:
        for fd in fds:
            os.close(fd)


def _stat(path: Path, name: str) -> int:
    with Client(path) as c:
        return c.stat(name)


@contextlib.contextmanager
def again(files: Files) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Another service on the same files."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "s"
        argv = [str(cache()), "serve", f"/proc/self/fd/{files.index}", f"/proc/self/fd/{files.store}"]
        with running(argv, path, (files.index, files.store)) as process:
            yield path, process


def check(path: Path) -> None:
    with Client(path) as c:
        for n in range(KEYS):
            there = b"VALUE key%d %d %d\r\n%s\r\n" % (n, n, len(value(n)), value(n)) if n % 5 else b""
            c.say(b"get key%d\r\n" % n, there + b"END\r\n")
        assert c.stat("curr_items") == KEYS - KEYS // 5


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_service_goes_on_where_another_one_was_killed(unfinished: bool) -> None:
    with left_behind(unfinished) as files:
        for _ in range(2):
            with again(files) as (path, _):
                check(path)
        with again(files) as (path, _), Client(path) as c:
            # what was free, or half written, is free again
            c.say(b"set new 0 0 1000\r\n%s\r\n" % (b"n" * 1000), b"STORED\r\n")
            c.say(b"get new\r\n", b"VALUE new 0 1000\r\n%s\r\nEND\r\n" % (b"n" * 1000))
            c.say(b"delete new\r\n", b"DELETED\r\n")


def test_room_is_not_lost_when_services_die() -> None:
    """Twenty times: as many keys fit as at first."""
    with left_behind() as files:
        used = files.header()[4]
        for _ in range(20):
            with again(files) as (path, _), Client(path) as c:
                c.socket.sendall(b"set half 0 0 900\r\n" + b"?" * 10)
                with Client(path) as other:
                    other.stat("pid")
        with again(files) as (path, _):
            check(path)
        used_now = files.header()[4]
        assert isinstance(used, int) and isinstance(used_now, int) and used_now <= used + 1024


def change_header(files: Files, **members: object) -> None:
    names = ("magic", "version", "buckets", "store_size", "used", "cas")
    values = files.header()
    for name, new in members.items():
        values[names.index(name)] = new
    files.write(files.index, 0, HEADER.pack(*values))


def change_item(files: Files, **members: int) -> None:
    names = ("next", "cas", "hash", "flags", "value_size", "expires", "key_size", "class_")
    _, at = files.first()
    values = list(ITEM.unpack(files.read(files.store, at, ITEM.size)))
    for name, new in members.items():
        values[names.index(name)] = new
    files.write(files.store, at, ITEM.pack(*values))


def point(files: Files, offset: int) -> None:
    number, _ = files.first()
    files.write(files.index, PAGE + 8 * number, struct.pack("<Q", offset))


def bite_its_tail(files: Files) -> None:
    change_item(files, next=files.first()[1])


def two_buckets_for_one(files: Files) -> None:
    number, at = files.first()
    files.write(files.index, PAGE + 8 * (number + 1), struct.pack("<Q", at))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_header(f, magic=b"nothing!"), "this is no index of a cache"),
        (lambda f: change_header(f, version=2), "this is no index of a cache"),
        (lambda f: change_header(f, buckets=1000), "the number of buckets"),
        (lambda f: change_header(f, buckets=0), "the number of buckets"),
        (lambda f: change_header(f, store_size=1 << 40), "the store has not the size"),
        (lambda f: change_header(f, used=1 << 40), "the used part of the store"),
        (lambda f: change_header(f, used=FIRST + 8), "the used part of the store"),
        (lambda f: os.ftruncate(f.store, 512 << 10), "the store has not the size"),
        (lambda f: os.ftruncate(f.index, PAGE), "the number of buckets"),
        (lambda f: os.ftruncate(f.index, 0), "the files cannot be mapped"),
        (lambda f: point(f, 1 << 40), "an item is outside the store"),
        (lambda f: point(f, 8), "an item is outside the store"),
        (lambda f: point(f, f.first()[1] + 16), "an item"),
        (two_buckets_for_one, "an item has another key"),
        (bite_its_tail, "an item is reached twice"),
        (lambda f: change_item(f, hash=1), "an item has another key"),
        (lambda f: change_item(f, value_size=1 << 19), "an item is larger than its chunk"),
        (lambda f: change_item(f, key_size=60000), "an item is larger than its chunk"),
        (lambda f: change_item(f, class_=200), "a chunk of the store is damaged"),
        (lambda f: change_item(f, class_=57), "a chunk of the store is damaged"),
        (lambda f: change_item(f, next=(1 << 64) - 16), "an item is outside the store"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(damage: object, message: str) -> None:
    """Nothing is served from them, and it says why."""
    assert callable(damage)
    with left_behind() as files:
        damage(files)
        with again(files) as (_, process):
            assert process.wait(20) == 1
            assert process.stderr is not None and message in process.stderr.read().decode()


@pytest.mark.parametrize("size", ["0", "1K", "1P", "-1", "x", "99999999999999999999", "4Q", ""])
def test_impossible_sizes(size: str) -> None:
    words = [str(cache()), "serve", size]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode in (1, 2) and done.stdout == "" and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["nosuch"], ["start"], ["check", "x"], ["serve"]])
def test_bad_usage(words: list[str]) -> None:
    done = subprocess.run([str(cache()), *words], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: cache start SIZE")
