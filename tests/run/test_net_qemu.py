"""The same kernels, programs and drivers on QEMU: there too a network card receives through an update.

QEMU's e1000 and intel-iommu are somebody else's. Frames come by a datagram socket in real time, so few that
the socket holds what comes in the second for which QEMU's card looks away after its receiver was set up. How
fast the host is does not matter: the program itself waits for frames, before the update and after it.
"""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest

from emu.debug.net import NetReport
from emu.debug.options import Options
from emu.debug.update import Update
from emu.debug.userspace import initramfs
from emu.initproto import RecordReader, Transcript
from emu.traffic import Frame
from tests.guest.running import elf
from tests.oracles import require

PAUSE = 0.01
"""Seconds between two frames."""
SECONDS = 120


def udp() -> tuple[socket.socket, int]:
    """A socket, and its port."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    return one, int(one.getsockname()[1])


def on_qemu(tmp_path: Path, old: str, new: str) -> tuple[Transcript, str]:
    """What init reports of one update, and the console."""
    work = Options(
        old=old, new=new, memory=512 << 20, before=["net start", "net wait 10"], programs=["net"],
        after=["net check", "net wait 10", "net stop"], cmdline="vfio-pci.ids=8086:100e",
    )  # fmt: skip
    update = Update(work)
    (tmp_path / "initramfs").write_bytes(initramfs(update.options, update.chain))
    cmdline = f"{update.chain.command_line(0)} luemu.generation=0"
    update.machine.close()
    near, near_port = udp()
    far, far_port = udp()
    far.close()
    ends = f"local.type=inet,local.host=127.0.0.1,local.port={far_port}"
    ends += f",remote.type=inet,remote.host=127.0.0.1,remote.port={near_port}"
    command: list[str | Path] = [
        require("qemu-system-x86_64"), "-accel", "tcg", "-machine", "q35", "-cpu", "EPYC", "-m", "512",
        "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{tmp_path}/console",
        "-serial", f"file:{tmp_path}/records", "-kernel", elf(old), "-append", cmdline,
        "-initrd", tmp_path / "initramfs", "-device", "intel-iommu,intremap=on",
        "-netdev", f"dgram,id=n,{ends}", "-device", "e1000,netdev=n,addr=2",
    ]  # fmt: skip
    qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    end = time.monotonic() + SECONDS
    number = 0
    try:
        while qemu.poll() is None and time.monotonic() < end:
            near.sendto(Frame(0, number, 0, 60 + number % 1400).build(), ("127.0.0.1", far_port))
            number += 1
            time.sleep(PAUSE)
    finally:
        qemu.kill()
        qemu.wait()
        near.close()
    transcript = Transcript()
    transcript.add(RecordReader().feed((tmp_path / "records").read_bytes()))
    return transcript, (tmp_path / "console").read_text(errors="replace")


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("new", "old")])
def test_frames_arrive_through_an_update_on_qemu(tmp_path: Path, old: str, new: str) -> None:
    transcript, console = on_qemu(tmp_path, old, new)
    assert [p.status for p in transcript.programs] == [0] * 5, console[-3000:] + repr(transcript.programs)
    report = NetReport.parse(transcript.programs[-1].output)
    assert report is not None and not report.problems and report.final and report.updates == 1
    assert report.backlog > 0 and report.received > report.backlog, "some before, some after, some in between"
    wrong = (report.lost, report.duplicated, report.corrupted, report.reordered, report.missed)
    assert wrong == (0, 0, 0, 0, 0), report
    assert "DMA is remapped, and so are interrupts, as the previous kernel left it" in console
