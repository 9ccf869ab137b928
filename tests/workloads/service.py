"""The cache's service as a process of this host: it is an ordinary Linux program."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from kernels.build import build_all, project_root


def cache() -> Path:
    """The program, built if need be."""
    return build_all(project_root(), ["cache"])["cache"]


class Client:
    """A connection. What comes back is compared as bytes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        for last in reversed(range(2000)):
            try:
                self.socket.connect(str(path))  # without a timeout it waits until there is room
                break
            except ConnectionRefusedError:  # it has its name, and does not listen yet
                if not last:
                    self.socket.close()
                    raise
                time.sleep(0.005)
        self.socket.settimeout(20)

    def say(self, data: bytes, answer: bytes) -> None:
        """Send, and expect exactly this answer."""
        self.socket.sendall(data)
        assert self.read(len(answer)) == answer, f"the answer to {data[:80]!r}"

    def read(self, size: int) -> bytes:
        """That many bytes, or what there is before the connection ends."""
        found = b""
        while len(found) < size:
            piece = self.socket.recv(size - len(found))
            if not piece:
                break
            found += piece
        return found

    def until(self, end: bytes) -> bytes:
        """Everything up to these bytes."""
        found = b""
        while not found.endswith(end):
            piece = self.socket.recv(1)
            assert piece, f"the connection ended after {found!r}"
            found += piece
        return found

    def gone(self) -> bool:
        """Whether the service has closed the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def stat(self, name: str) -> int:
        """A number that the service counts."""
        self.socket.sendall(b"stats\r\n")
        for line in self.until(b"END\r\n").split(b"\r\n"):
            if line.startswith(f"STAT {name} ".encode()):
                return int(line.split()[2])
        raise AssertionError(f"no STAT {name}")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.socket.close()


@contextlib.contextmanager
def serving(directory: Path, size: str = "4M") -> Iterator[Path]:
    """A service; the path of its socket."""
    path = directory / "socket"
    with running([str(cache()), "serve", size], path):
        yield path


@contextlib.contextmanager
def running(argv: list[str], path: Path, fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens at the path."""
    process = subprocess.Popen(
        argv, env={"CACHE_SOCKET": str(path)}, stderr=subprocess.PIPE, pass_fds=fds
    )  # fmt: skip
    try:
        for _ in range(2000):
            if path.exists() or process.poll() is not None:
                break
            time.sleep(0.005)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
        path.unlink(missing_ok=True)
