"""The host's files: what is read is bounded, what is written appears complete or not at all."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from emu.errors import ImageError

FILE_BYTES_MAX = 0xFFFFFFFF
"""Of one file that is read into memory; also the largest that fits in an initramfs."""


def is_regular(path: Path) -> bool:
    """Whether opening it cannot wait (a FIFO) and reading it ends (a device may not)."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def read_file(path: Path, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    """A regular file's contents. Raises ImageError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ImageError("cannot be read: not a regular file", str(path))
        if status.st_size > bytes_max:
            raise ImageError(f"cannot be read: {status.st_size:,} bytes are too many", str(path))
        return path.read_bytes()
    except (OSError, ValueError) as e:  # ValueError: a NUL byte in the name
        raise ImageError(f"cannot be read: {getattr(e, 'strerror', None) or e}", str(path)) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path to write to. What is written takes the place of ``path`` when the block ends well;
    otherwise nothing is left and what was there stays. Raises ImageError for any OSError in the block.

    A device or FIFO is written to as it is: it must not be replaced by a file.
    """
    try:
        target = path.resolve()  # what a symbolic link leads to is replaced, not the link
        replace = target.is_file() or not target.exists()
    except (OSError, ValueError, RuntimeError) as e:  # RuntimeError: symbolic links in a circle
        raise _unwritable(path, e) from None
    part = target.with_name(target.name + ".part") if replace else target
    try:
        yield part
        if replace:
            part.replace(target)
    except OSError as e:
        raise _unwritable(path, e) from None
    finally:
        if replace:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _unwritable(path: Path, e: Exception) -> ImageError:
    return ImageError(f"cannot be written: {getattr(e, 'strerror', None) or e}", str(path))
