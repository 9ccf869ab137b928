"""Run a plan on QEMU: the machine that init is compared on, independent of ours."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.initproto import Plan, RecordReader, Transcript
from emu.initramfs import Initramfs
from kernels import build
from tests.linux.build import LinuxBuild
from tests.oracles import require

CMDLINE = "console=ttyS0 kho=on liveupdate=on retain_initrd"
NEXT_KERNEL = "/luemu/kernel-1"


@dataclass(frozen=True)
class QemuRun:
    """What a run left: what init said, the console, whether QEMU ended by itself."""

    transcript: Transcript
    console: str
    powered_off: bool


def initramfs(linux: LinuxBuild, plan: Plan) -> Initramfs:
    """init, lu, the next kernel (the same one), busybox's shell, and the plan."""
    archive = Initramfs()
    archive.add_standard(build.build_all(build.project_root(), ["init"])["init"])
    archive.add_host_file(linux.lu, "/bin/lu")
    archive.add_host_file(linux.bzimage, NEXT_KERNEL)
    archive.add_host_file(require("busybox"), "/bin/busybox")
    for applet in ("sh", "cat", "echo", "id", "kill", "ls", "seq", "sleep", "tty"):
        archive.add_symlink(f"/bin/{applet}", "busybox")
    archive.write_plan(plan)
    return archive


def run(
    linux: LinuxBuild,
    archive: Initramfs,
    tmp: Path,
    *,
    cmdline: str = CMDLINE,
    typed: bytes = b"",
    options: Sequence[str] = (),
    timeout: float = 300,
) -> QemuRun:
    """Boot and run until the machine turns itself off; `typed` goes to the console."""
    image, records = tmp / "initramfs", tmp / "records"
    image.write_bytes(archive.build())
    command: list[str | Path] = [require("qemu-system-x86_64"), "-machine", "q35", "-accel", "tcg"]
    command += ["-cpu", "max,-la57", "-m", "512", "-display", "none", "-monitor", "none", "-no-reboot"]
    command += ["-kernel", linux.bzimage, "-initrd", image, "-append", cmdline]
    command += ["-serial", "stdio", "-serial", f"file:{records}", *options]
    done = subprocess.run(command, input=typed, capture_output=True, check=False, timeout=timeout)
    reader, transcript = RecordReader(), Transcript()
    transcript.add(reader.feed(records.read_bytes()))
    reader.close()
    return QemuRun(transcript, done.stdout.decode(errors="replace"), done.returncode == 0)
