"""VFIO's device file, by a program that owns the educational device and asks everything, also wrongly.

kernels/user/tests/vfio.c says what each call answers. What it has to say is in vfio_says.txt. The reference
Linux says the same, and our kernel does on QEMU.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emu.boot import Boot
from emu.devices.pci import COMMAND, COMMAND_MASTER, PciFunction
from emu.machine import Machine, StopKind
from tests.guest.running import RELEASES, on_qemu
from tests.linux.build import CONFIGS, required
from tests.userspace import rig
from tests.userspace.programs import archive, kernel

EXPECTED = Path(__file__).with_name("vfio_says.txt")
CMDLINE = "loglevel=6 vfio-pci.ids=1234:11e8"
DEVICES = ("vtd", "edu")


def run(
    release: str,
    commands: list[str],
    cmdline: str = CMDLINE,
    devices: tuple[str, ...] = DEVICES,
) -> tuple[str, dict[str, PciFunction]]:
    """What was printed, and the functions as they were left."""
    with Machine(256 << 20, devices=devices) as m:
        m.boot(Boot(kernel(release), cmdline, archive(commands)))
        stop = m.run(60 * 10**9, max_instructions=1_000_000_000)
        text = m.console.decode("utf-8", "replace").replace("\r", "")
        assert stop.kind is StopKind.POWER_OFF, f"{stop}\n{text[-2000:]}"
        functions = {n: f for n, f in m.platform.extras.items() if isinstance(f, PciFunction)}
    return text, functions


def parts(text: str) -> list[list[str]]:
    """What each program said."""
    found = re.findall(r"^@@ /t/\S+\n(.*?)^@@ end: exited 0$", text, re.DOTALL | re.MULTILINE)
    return [part.splitlines() for part in found]


def expected() -> list[str]:
    return EXPECTED.read_text().splitlines()


@pytest.mark.parametrize("release", RELEASES)
def test_every_answer(release: str) -> None:
    """Twice: the second program finds the device as the first did, but for the fault, which is said once."""
    text, functions = run(release, ["vfio", "vfio"])
    first, second = parts(text)
    assert first == expected()
    assert second == [line for line in expected() if not line.startswith("DMAR:")]
    assert not functions["edu"].register(COMMAND, 2) & COMMAND_MASTER, (
        "the end of the program left it a master"
    )


NOT_QEMUS = re.compile(
    r"capability|device: flags|VFIO_DEVICE_RESET\) = 0|reg\(4\) == 0:|config\(4, 2\) & 2|line 0x"
)
"""edu has neither power management nor a function reset there."""


def test_qemu_says_the_same() -> None:
    theirs = on_qemu(
        "old", CMDLINE, machine="q35,kernel-irqchip=split", memory_mib=256, initramfs=archive(["vfio"]),
        devices=["intel-iommu,intremap=on", "edu,addr=3"],
    )  # fmt: skip
    (said,) = parts(theirs)
    ours = [line for line in expected() if not NOT_QEMUS.search(line)]
    assert [line for line in said if not NOT_QEMUS.search(line)] == ours


@pytest.mark.linux
def test_linux_says_the_same() -> None:
    spec = rig.Spec(
        [required(CONFIGS[1]).bzimage], before=["vfio"], programs=("vfio",), devices=DEVICES,
        memory=512 << 20, cmdline="intel_iommu=on iommu.strict=1 vfio-pci.ids=1234:11e8",
    )  # fmt: skip
    with rig.Rig(spec) as r:
        said = r.finish().check().output(0).splitlines()
    assert said == [line for line in expected() if not line.startswith("DMAR:")]


def test_behind_a_bridge() -> None:
    text, _ = run(
        "new",
        ["vfio /dev/vfio/devices/vfio0"],
        "loglevel=6 vfio-pci.ids=all",
        ("vtd", "bridge", "bridge/edu"),
    )
    (said,) = parts(text)
    assert said == [line.replace("00:03.0", "01:00.0") for line in expected()]


@pytest.mark.parametrize("devices", [("vtd", "e1000"), ("vtd", "bridge", "bridge/e1000")], ids="+".join)
def test_ports(devices: tuple[str, ...]) -> None:
    """The network card has a BAR in I/O space; behind a bridge that takes a window of it."""
    text, _ = run("old", ["vfio_ports"], "loglevel=6 vfio-pci.ids=all", devices)
    ioctl = "ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &r) = 0"
    write = "pwrite(device, &command, 2, ((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4) = 2"
    assert parts(text) == [[
        "ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &b) = 0", ioctl, "region 0: flags 0x7, 131072 bytes", ioctl,
        "region 1: flags 0, 0 bytes", ioctl, "region 2: flags 0x3, 64 bytes", write,
        "by_port(8) == by_memory(8): yes",
        "by_port(0x5400) == by_memory(0x5400) && by_memory(0x5400) != 0: yes",
        "mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, PORTS) == MAP_FAILED && errno == EINVAL: yes",
        "pread(device, &byte, 1, PORTS + 64) = -22 (Invalid argument)", write,
        "pread(device, &byte, 1, 8) = -5 (I/O error)",
    ]]  # fmt: skip


def test_numbers_follow_the_places() -> None:
    text, _ = run("old", [], "loglevel=7 vfio-pci.ids=all", ("vtd", "bridge", "edu", "bridge/edu"))
    assert [line for line in text.splitlines() if "vfio" in line and "Command line" not in line] == [
        "vfio-pci: 00:03.0 [1234:11e8] is /dev/vfio/devices/vfio0",
        "vfio-pci: 01:00.0 [1234:11e8] is /dev/vfio/devices/vfio1",
    ]


@pytest.mark.parametrize("ids", ["1234", "1234:", ":11e8", "1234:11e8x", "12345:1", "1234:11e8,,", "all,1:2"])
def test_a_malformed_list_of_functions_is_refused(ids: str) -> None:
    text, _ = run("old", [], f"loglevel=7 vfio-pci.ids={ids}", ("edu",))
    assert re.search(r"vfio-pci\.ids", text.split("\n", 2)[2]), "nobody said that the parameter is malformed"


def test_without_remapping_nothing_can_be_bound() -> None:
    text, _ = run("old", ["vfio"], CMDLINE, ("edu",))
    assert "device >= 0: yes\niommu >= 0: no" in text
    assert "@@ end: exited 1" in text


def test_functions_that_are_not_named_stay_with_the_kernel() -> None:
    text, _ = run("old", ["vfio"], "loglevel=7 edu_test vfio-pci.ids=8086:100e", ("vtd", "edu"))
    assert "edu: 00:03.0 MSI ok" in text and "device >= 0: no" in text


@pytest.mark.parametrize("seed", range(3))
def test_programs_that_call_at_random(seed: int) -> None:
    """Two processes with the same three device files and two iommufds. Afterwards all works as before."""
    text, functions = run(
        "old" if seed % 2 else "new", [f"vfio_storm {seed} 4000", "vfio"], "loglevel=4 vfio-pci.ids=all",
        ("vtd", "bridge", "edu", "bridge/edu"),
    )  # fmt: skip
    storm, after = parts(text)
    assert [line for line in storm if line.startswith(("child", "bad"))] == [
        "child: exited 0", "child: exited 0", "bad == 0: yes"
    ]  # fmt: skip
    assert [line for line in after if "DMAR" not in line] == [
        line for line in expected() if "DMAR" not in line
    ]
    assert not any(f.register(COMMAND, 2) & COMMAND_MASTER for n, f in functions.items() if n != "bridge")
