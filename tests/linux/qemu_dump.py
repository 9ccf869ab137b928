"""Stop QEMU at a function of the kernel and let it dump the machine's memory in its own formats."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from emu.initproto import Plan
from tests.linux import qemu
from tests.linux.build import LinuxBuild
from tests.oracles import require

BOOT_SECONDS_MAX = 240
MEMORY_MIB = 128


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    """A connection to one of QEMU's sockets, which appears some time after its start."""
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(path))
            link.settimeout(BOOT_SECONDS_MAX)
            return link
        except OSError:
            link.close()
            time.sleep(0.05)
    raise AssertionError(f"QEMU has no {path.name}")


class Debugger:
    """What is needed of the protocol that gdb speaks."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.buffer = b""

    def ask(self, packet: str) -> str:
        """Send a packet and wait for the answer."""
        data = packet.encode()
        self.link.sendall(b"$" + data + f"#{sum(data) & 255:02x}".encode())
        while (found := re.search(rb"\$([^#]*)#..", self.buffer)) is None:
            received = self.link.recv(4096)
            assert received, "QEMU has closed the debugger's connection"
            self.buffer += received
        self.buffer = self.buffer[found.end() :]
        self.link.sendall(b"+")
        return found[1].decode("latin-1")


class Monitor:
    """QEMU's control protocol: one JSON document a line."""

    def __init__(self, link: socket.socket) -> None:
        self.file = link.makefile("rwb")
        self.file.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command; events that come in between are passed over."""
        self.file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]


def address_of(linux: LinuxBuild, function: str) -> int:
    """Address of a function in the kernel's own map."""
    found = re.search(rf"^([0-9a-f]+) [tT] {function}$", linux.system_map.read_text(), re.M)
    assert found is not None, function
    return int(found[1], 16)


def dump_at(linux: LinuxBuild, plan: Plan, cmdline: str, function: str, image: Path, tmp: Path) -> None:
    """Run a plan until the kernel enters a function; write memory to `image`, ELF or by suffix raw."""
    initramfs = tmp / "initramfs"
    initramfs.write_bytes(qemu.initramfs(linux, plan).build())
    gdb, qmp = tmp / "gdb", tmp / "qmp"
    command: list[str | Path] = [require("qemu-system-x86_64"), "-machine", "q35", "-accel", "tcg"]
    command += ["-cpu", "max,-la57", "-m", str(MEMORY_MIB), "-display", "none", "-monitor", "none"]
    command += ["-no-reboot", "-S", "-kernel", linux.bzimage, "-initrd", initramfs, "-append", cmdline]
    command += ["-serial", f"file:{tmp / 'console'}", "-serial", f"file:{tmp / 'records'}"]
    command += ["-qmp", f"unix:{qmp},server=on,wait=off"]
    command += ["-chardev", f"socket,path={gdb},server=on,wait=off,id=gdb", "-gdb", "chardev:gdb"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            with _connect(qmp, process) as control, _connect(gdb, process) as debug:
                monitor, debugger = Monitor(control), Debugger(debug)
                assert debugger.ask(f"Z1,{address_of(linux, function):x},1") == "OK"
                stopped = debugger.ask("c")
                assert stopped.startswith("T05"), stopped
                if image.suffix == ".raw":
                    size = MEMORY_MIB << 20
                    monitor.execute("pmemsave", val=0, size=size, filename=str(image))
                else:
                    monitor.execute("dump-guest-memory", paging=False, protocol=f"file:{image}")
        finally:
            process.kill()
