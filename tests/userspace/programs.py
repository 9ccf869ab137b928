"""Test programs on our kernels and on the Linux that the tests run on.

A program of kernels/user/tests/ says what every call answers, one line each, and nothing that differs by
itself. The same static binary runs here and there; Linux is the oracle.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emu import Machine
from emu.boot import Boot
from emu.initramfs import Initramfs
from kernels import build

RELEASES = ("old", "new")
INSTRUCTIONS_MAX = 3_000_000_000
INSTRUCTIONS_LONG = 100_000_000_000
"""For what belongs to a campaign."""
RAM = 256 << 20
HOST_SECONDS_MAX = 60


@dataclass(frozen=True)
class Ran:
    """What a program said, line by line, and how it ended ("exited 0")."""

    lines: list[str]
    end: str


def program(name: str) -> Path:
    """The binary of a test program, built if need be."""
    root = build.project_root()
    path = build.build(root, build.user_test(name))
    assert path is not None
    return path


@functools.cache
def kernel(release: str) -> bytes:
    """The bzImage of a release."""
    root = build.project_root()
    path = build.build(root, next(t for t in build.TARGETS if t.name == f"kernel-{release}"))
    assert path is not None
    return path.with_suffix(".bzImage").read_bytes()


def archive(commands: Sequence[str], files: dict[str, bytes] | None = None) -> bytes:
    """An initramfs whose init runs the commands, one after the other. A command begins with the name of a
    test program, or with the path of one of the files, which are put in executable."""
    fs = Initramfs()
    fs.add_standard(program("runner"))
    lines = []
    for command in commands:
        name, _, rest = command.partition(" ")
        if not name.startswith("/"):
            fs.add_file(f"/t/{name}", program(name).read_bytes(), 0o755)
            name = f"/t/{name}"
        lines.append(f"{name} {rest}\n")
    for path, data in (files or {}).items():
        fs.add_file(path, data, 0o755)
    fs.add_file("/tests", "".join(lines).encode())
    return fs.build()


def boot(
    release: str, initramfs: bytes, cmdline: str = "loglevel=4", instructions: int = INSTRUCTIONS_MAX
) -> list[str]:
    """Everything a kernel printed, line by line, until it switched off or died."""
    with Machine(memory=RAM) as m:
        m.boot(Boot(kernel(release), cmdline, initramfs))
        m.run(max_instructions=instructions)
        text = m.console.decode("utf-8", "replace")
    return text.replace("\r", "").splitlines()


def on_kernel(
    release: str, *commands: str, files: dict[str, bytes] | None = None, instructions: int = INSTRUCTIONS_MAX
) -> list[Ran]:
    """Run commands one after the other on one of our kernels; see `archive`."""
    out: list[Ran] = []
    current: list[str] = []
    console = boot(release, archive(commands, files), instructions=instructions)
    for line in console:
        if line.startswith("@@ end: "):
            out.append(Ran(current, line.removeprefix("@@ end: ")))
        if line.startswith("@@ "):
            current = []
        else:
            current.append(line)
    assert "@@ done" in console, "the run did not end:\n" + "\n".join(console[-40:])
    return out


def on_linux(name: str, *arguments: str) -> Ran:
    """Run a test program on this machine's Linux, in a session of its own."""
    with tempfile.TemporaryDirectory() as tmp:
        run = subprocess.run(
            [program(name), *arguments], cwd=tmp, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=HOST_SECONDS_MAX, check=False, start_new_session=True,
            env={"HOME": "/", "TERM": "linux"},
        )  # fmt: skip
    status = run.returncode
    end = f"exited {status}" if status >= 0 else f"killed by {-status}"
    return Ran(run.stdout.decode("utf-8", "replace").splitlines(), end)


def is_root() -> bool:
    """Some answers differ for user 0, who runs everything in our kernels."""
    return os.geteuid() == 0
