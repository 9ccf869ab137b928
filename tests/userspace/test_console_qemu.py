"""The serial console on QEMU: a line slower than who writes on it, so that interrupts do the work."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from emu.initproto import Plan
from kernels import build
from tests.oracles import require
from tests.userspace.console import PROMPT, initramfs
from tests.userspace.programs import RELEASES, kernel

PIPE_BYTES = 4096
READ_BYTES = 61
LINES = 8000
BYTES_MAX = 200_000


class Terminal:
    """QEMU's first serial port on two pipes. It is read in small pieces, and the pipe holds little: so QEMU's
    transmitter is often full."""

    def __init__(self, qemu: subprocess.Popen[bytes]) -> None:
        self.qemu = qemu
        assert qemu.stdout is not None
        self.fd = qemu.stdout.fileno()
        fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.got = b""

    def expect(self, text: str) -> list[str]:
        """The lines up to and with the text; fails if it does not come."""
        wanted = text.encode()
        while wanted not in self.got:
            more = os.read(self.fd, READ_BYTES)
            self.got += more
            assert more and len(self.got) < BYTES_MAX, f"{text!r} did not come:\n{self.got[-2000:]!r}"
        end = self.got.index(wanted) + len(wanted)
        shown, self.got = self.got[:end], self.got[end:]
        return shown.decode().replace("\r\n", "\n").splitlines()

    def type(self, text: str) -> None:
        """Press keys."""
        assert self.qemu.stdin is not None
        self.qemu.stdin.write(text.encode())
        self.qemu.stdin.flush()

    def rest(self) -> str:
        """Everything until QEMU ends."""
        while more := os.read(self.fd, READ_BYTES):
            self.got += more
        return self.got.decode().replace("\r\n", "\n")


def session(t: Terminal) -> None:
    """What is written comes whole and in order; what is typed is edited."""
    t.expect("# ")
    t.type("PS1='@@'' '\r")
    t.expect(PROMPT)
    t.type(f"seq {LINES}; echo '<3>said' > /dev/kmsg; cat > /tmp/f\r")
    assert t.expect("said\r\n")[1:] == [*(str(n) for n in range(1, LINES + 1)), "said"]
    t.type("typed\x7f\x7fo!\r\x04")
    t.expect(PROMPT)
    t.type("cat /tmp/f\r")
    assert t.expect(PROMPT)[1:] == ["typo!", PROMPT]
    t.type("seq 2000; exec poweroff -f\r")
    assert "\n1999\n2000\n" in t.rest(), "the machine was off before all was sent"


@pytest.mark.parametrize("release", RELEASES)
def test_a_slow_line(release: str, tmp_path: Path) -> None:
    kernel(release)
    archive = tmp_path / "initramfs"
    archive.write_bytes(initramfs(Plan(0, terminal="/dev/ttyS0", shell=("/bin/sh",))))
    command = [
        str(require("qemu-system-x86_64")), "-machine", "q35", "-m", "256", "-display", "none",
        "-monitor", "none", "-serial", "stdio", "-serial", "null", "-no-reboot", "-initrd", str(archive),
        "-append", "loglevel=4", "-kernel", str(build.project_root() / f"kernels/bin/{release}.elf"),
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        try:
            session(Terminal(qemu))
            assert qemu.wait(60) == 0
        finally:
            qemu.kill()
