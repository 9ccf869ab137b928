"""Linux on a machine with more than a plain PC: it finds the devices, numbers buses, places BARs, and remaps.

The reference Linux has neither MSI nor a driver for VT-d. One that has, as distributions do, is named by
LUEMU_VTD_LINUX (a bzImage; on Debian `apt-get download linux-image-amd64`'s dependency, `dpkg -x`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from emu.boot import Boot
from emu.devices.pci import PciFunction
from emu.devices.vtd import EIME, IRE, QIE, TE, Vtd
from emu.machine import Machine, StopKind
from tests.linux.build import LinuxBuild

pytestmark = pytest.mark.linux

DEVICES = ("vtd", "bridge", "edu", "bridge/edu")
CMDLINE = "console=ttyS0 panic=-1"


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


def test_a_linux_with_vt_d_remaps() -> None:
    image = os.environ.get("LUEMU_VTD_LINUX")
    if image is None:
        pytest.skip("LUEMU_VTD_LINUX does not name a Linux with INTEL_IOMMU")
    with Machine(512 << 20, devices=DEVICES) as m:
        kernel = Path(image).read_bytes()
        text = boot(m, kernel, f"{CMDLINE} intel_iommu=on iommu.strict=1", b"VFS: Unable to mount root fs")
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
