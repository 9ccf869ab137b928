"""Linux on a machine with more than a plain PC: it finds the devices, numbers buses, places BARs, and remaps.

The plain reference Linux has neither MSI nor a driver for VT-d; the other one has (`linux_test`).
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from emu.boot import Boot
from emu.cli import main
from emu.debug.net import NetReport, Sent
from emu.debug.options import Options
from emu.debug.update import Update
from emu.devices.pci import PciFunction
from emu.devices.vtd import EIME, IRE, QIE, TE, Vtd
from emu.initramfs import Initramfs
from emu.machine import Machine, StopKind
from emu.traffic import TrafficSpec
from kernels.build import LINUX_PROGRAM, compile_with_zig, project_root
from tests.linux.build import LinuxBuild
from tests.oracles import require
from tests.selftest.test_qemu import DEVICES as DEVICES_OF_QEMU

pytestmark = pytest.mark.linux

DEVICES = ("vtd", "bridge", "edu", "bridge/edu")
CMDLINE = "console=ttyS0 panic=-1"
VTD_ON = "intel_iommu=on iommu.strict=1"


def boot(m: Machine, kernel: bytes, cmdline: str, until: bytes) -> str:
    """Boot without a root file system, up to a line on the console; what was printed."""
    m.boot(Boot(kernel, cmdline))
    m.serial_sinks.append(lambda port, byte, now: m.stop() if m.serial[0].endswith(until) else None)
    stop = m.run(max_instructions=10_000_000_000)
    text = m.console.decode()
    assert stop.kind is StopKind.REQUEST, f"{stop}\n{text[-3000:]}"
    return text


def test_linux_finds_and_places_the_devices(linux: LinuxBuild) -> None:
    with Machine(512 << 20, devices=DEVICES) as m:
        text = boot(m, linux.bzimage.read_bytes(), CMDLINE, b"No working init found")
        for line in (
            r"ACPI: DMAR 0x",
            r"pci 0000:00:01\.0: \[8086:29c1\] type 01 class 0x060400 PCIe Root Port",
            r"pci 0000:00:03\.0: \[1234:11e8\] type 00 class 0x00ff00",
            r"pci 0000:01:00\.0: \[1234:11e8\]",
            r"pci 0000:00:01\.0: PCI bridge to \[bus 01\]",
            r"pci 0000:00:03\.0: BAR 0 \[mem 0xc0100000-0xc01fffff\]: assigned",
            r"pci 0000:01:00\.0: BAR 0 \[mem 0xc0000000-0xc00fffff\]: assigned",
        ):
            assert re.search(line, text), f"not on the console: {line}\n{text}"
        edu, below = m.platform.extras["edu"], m.platform.extras["bridge/edu"]
        assert isinstance(edu, PciFunction) and isinstance(below, PciFunction)
        assert (edu.register(0x10, 4), below.register(0x10, 4)) == (0xC0100000, 0xC0000000)
        assert edu.register(0x3C, 1) in (0, 23) and below.requester == 0x100


def test_a_plain_pc_mentions_none_of_them(linux: LinuxBuild) -> None:
    with Machine(512 << 20) as m:
        text = boot(m, linux.bzimage.read_bytes(), CMDLINE, b"No working init found")
    assert not re.search("DMAR|1234:11e8|29c1", text)


def initramfs(name: str) -> bytes:
    """tests/linux/NAME.c as init, and nothing else."""
    root = project_root()
    program = root / "build/tests" / name
    compile_with_zig(root, LINUX_PROGRAM, [root / f"tests/linux/{name}.c"], program)
    archive = Initramfs()
    archive.add_file("/init", program.read_bytes(), 0o755)
    archive.add_device("/dev/console", 5, 1)
    return archive.build()


def printed(console: str) -> list[str]:
    """What init printed: lines that are not the kernel's."""
    lines = [line.strip("\r") for line in console.split("\n")]
    start = next((i for i, line in enumerate(lines) if line == "vfio: started"), None)
    assert start is not None, console[-3000:]
    return [line for line in lines[start:] if line and not line.startswith("[")]


def test_a_linux_with_vt_d_remaps(linux_test: LinuxBuild) -> None:
    with Machine(512 << 20, devices=DEVICES) as m:
        text = boot(m, linux_test.bzimage.read_bytes(), f"{CMDLINE} {VTD_ON}", b"No working init found")
        for line in (
            "DMAR: Host address width 48",
            "DMAR-IR: Enabled IRQ remapping in x2apic mode",
            "Using Queued invalidation",
            r"pci 0000:00:03\.0: Adding to iommu group",
            r"pci 0000:01:00\.0: Adding to iommu group",
        ):
            assert re.search(line, text), f"not on the console: {line}\n{text[-6000:]}"
        assert not re.search(r"DMAR:.*(fault|error|failed)", text, re.IGNORECASE), text
        unit = m.platform.extras["vtd"]
        assert isinstance(unit, Vtd)
        assert unit.s.gsts & (TE | IRE | QIE) == TE | IRE | QIE and unit.s.interrupts & EIME
        assert unit.s.entries, "its interrupts go through the table"
        assert not any(high >> 63 for high in unit.s.faults[1::2])


@pytest.mark.parametrize(
    ("devices", "cmdline"),
    [(("e1000",), ""), (("vtd", "bridge", "bridge/e1000"), VTD_ON)],
    ids=["plain", "behind a bridge, remapped"],
)
def test_linux_drives_the_card(linux_test: LinuxBuild, devices: tuple[str, ...], cmdline: str) -> None:
    """Its driver's own tests pass, and it sends back each of 300 frames of up to 9 KB."""
    traffic = "interval=150000,size=60-9216,count=300"
    with Machine(512 << 20, devices=devices, traffic=traffic) as m:

        def start(port: int, byte: int, now: int) -> None:
            if m.serial[0].endswith(b"net: up"):
                m.traffic.start(at=now + 1_000_000)

        m.serial_sinks.append(start)
        kernel = linux_test.bzimage.read_bytes()
        m.boot(Boot(kernel, f"{CMDLINE} {cmdline} frames=300", initramfs("net_e1000")))
        stop = m.run(max_instructions=20_000_000_000)
        console = m.console.decode().replace("\r", "")
        echoed, corrupted = m.traffic.stream(), m.traffic.s.corrupted
    assert stop.kind is StopKind.POWER_OFF, f"{stop}\n{console[-3000:]}"
    for line in (
        "net: self-test passed: 0 0 0 0 0",
        "net: rx_packets 300",
        "net: rx_missed_errors 0",
        "net: done",
    ):
        assert f"\n{line}\n" in console, f"not on the console: {line}\n{console[-3000:]}"
    assert (echoed.ranges, echoed.duplicated, echoed.reordered, corrupted) == ([0, 300], 0, 0, 0)
    assert not re.search(r"DMAR:.*fault", console)


def test_linux_gives_the_device_to_a_program(linux_test: LinuxBuild, tmp_path: Path) -> None:
    """VFIO: DMA through Linux's tables, MSI and INTx through remapping, a fault after unmapping, reset.

    QEMU's device prints the same, but that it cannot be reset.
    """
    kernel, initrd, cmdline = linux_test.bzimage, initramfs("vfio_edu"), f"{CMDLINE} {VTD_ON}"
    sizes: set[int] = set()
    # With less than 512 MiB free Linux has no huge pages.
    with Machine(1 << 30, devices=("vtd", "edu")) as m:
        unit = m.platform.extras["vtd"]
        assert isinstance(unit, Vtd)
        m.platform.dma.observers.append(
            lambda *piece: sizes.update(int(key[:2]) for keys in unit.s.pages.values() for key in keys)
        )
        m.boot(Boot(kernel.read_bytes(), cmdline, initrd))
        stop = m.run(max_instructions=20_000_000_000)
        console = m.console.decode()
    assert stop.kind is StopKind.POWER_OFF, f"{stop}\n{console[-3000:]}"
    ours = printed(console)
    assert ours[-1] == "vfio: done", console[-3000:]
    assert "after unmap: 55" in ours and "reset: 0, liveness 00000000" in ours
    assert re.search(r"\[DMA Write NO_PASID\] Request device \[0000:00:03\.0\] fault addr 0x401000", console)
    assert sizes == {12, 21}, "Linux maps with pages of 4 KiB and of 2 MiB"

    (tmp_path / "initrd").write_bytes(initrd)
    run = subprocess.run(
        [
            require("qemu-system-x86_64"), "-accel", "tcg", "-machine", "q35", *DEVICES_OF_QEMU,
            "-cpu", "EPYC,+x2apic", "-m", "1024", "-kernel", kernel, "-initrd", tmp_path / "initrd",
            "-append", cmdline, "-serial", "stdio", "-monitor", "none", "-display", "none", "-vga", "none",
            "-nic", "none", "-no-reboot",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert printed(run.stdout) == [line for line in ours if not line.startswith("reset:")]


def test_an_update_of_linux_with_devices_and_traffic(
    linux: LinuxBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    """`luemu run` on Linux with devices that nobody drives: frames come, and the update is as without."""
    words = ["--workload", "kho", "--traffic", "interval=100000,count=50,start=P10", "--json"]
    for name in ("vtd", "e1000", "edu"):
        words += ["--device", name]
    assert main(["run", "--old", str(linux.bzimage), *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["traffic"]["sent"] == 50 and result["ok"]


@pytest.mark.parametrize("irq", ["", "--irq "], ids=["polling", "interrupts"])
def test_the_workloads_program_receives_on_linux(linux_test: LinuxBuild, irq: str) -> None:
    """kernels/user/net, which our kernels run through updates, takes the card from Linux's own driver."""
    traffic = TrafficSpec.parse("rate=20k,size=60-1500,start=ready")
    run = Update(Options(
        old=linux_test.bzimage, new=linux_test.bzimage, updates=0, before=[f"net receive {irq}200"],
        programs=["net"], devices=("vtd", "e1000"), traffic=traffic, memory=1 << 30, cmdline=VTD_ON,
        max_instructions=10_000_000_000,
    ))  # fmt: skip
    with run.machine as m:
        sent = Sent(m.traffic)
        result = run.run()
        console = m.console.decode(errors="replace")
    assert result.ok, f"{result.reasons}\n{result.programs}\n{console[-3000:]}"
    report = NetReport.parse(result.programs[0]["output"].encode())
    assert report is not None and not report.problems and report.final, result.programs
    assert report.received == sent.count > 3000
    wrong = (report.lost, report.duplicated, report.corrupted, report.reordered, report.missed)
    assert (wrong, report.lost_interrupts) == ((0, 0, 0, 0, 0), 0)
    assert report.irq == bool(irq) and (report.signals > 100) == bool(irq)
    assert not re.search(r"DMAR:.*fault", console)
