"""Host files: what is written appears complete or not at all, what is read is bounded."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from emu.errors import ImageError
from emu.files import is_regular, read_file, replacing


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_bytes(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]
    with replacing(path) as part:
        part.write_bytes(b"new")
        assert path.read_bytes() == b"old", "until it is complete"
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to("target")
    for text in (b"first", b"second"):
        with replacing(link) as part:
            part.write_bytes(text)
        assert link.is_symlink() and target.read_bytes() == text
    circle = tmp_path / "circle"
    circle.symlink_to("circle")
    with pytest.raises(ImageError, match="cannot be written") as caught, replacing(circle) as part:
        part.write_bytes(b"x")
    assert caught.value.where == str(circle)


def test_a_fifo_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    with replacing(fifo) as part:
        part.write_bytes(b"through")
    reader.join()
    assert got == [b"through"] and fifo.is_fifo()


@pytest.mark.parametrize("name", ["no/such/folder", "a\0b", "x" * 300, "."])
def test_what_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="cannot be written") as caught, replacing(tmp_path / name) as part:
        part.write_bytes(b"x")
    assert caught.value.where == str(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path) == read_file(path, 5) == b"12345"
    with pytest.raises(ImageError, match="5 bytes are too many"):
        read_file(path, 4)
    with path.open("wb") as f:
        f.truncate(1 << 40)  # a hole: takes no room on the disk
    with pytest.raises(ImageError, match="too many"):
        read_file(path)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero"), Path("/dev/null")):
        assert not is_regular(path)
        with pytest.raises(ImageError, match="not a regular file"):
            read_file(path)
    for path in (tmp_path, tmp_path / "missing", tmp_path / "a\0b"):
        assert not is_regular(path)
        with pytest.raises(ImageError, match="cannot be read: "):
            read_file(path)
