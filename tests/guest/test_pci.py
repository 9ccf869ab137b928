"""The PCI core of our kernels, by the educational device: found wherever it is, interrupts, DMA.

The driver's own trial (`edu_test`) prints what worked. What the kernel did to the machine is read from the
machine.
"""

from __future__ import annotations

import pytest

from emu.boot import Boot
from emu.devices.pci import BAR0, COMMAND, COMMAND_MASTER, COMMAND_MEMORY, PciFunction
from emu.devices.pcibridge import MEMORY_BASE, SECONDARY_BUS, PciBridge
from emu.machine import Machine, StopKind
from tests.guest.running import RELEASES, elf, on_luemu, on_qemu
from tests.guest.test_qemu_update import initramfs

TRIALS = ("factorial", "DMA", "INTx", "MSI")


def lines(text: str, *prefixes: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(prefixes)]


def all_ok(*places: str) -> list[str]:
    return [
        f"edu: {place} {what}"
        for place in places
        for what in ("version 1.0", *(f"{trial} ok" for trial in TRIALS))
    ]


class Watched:
    """The machine of a run, looked at by the functions' own state when the kernel has ended."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.functions: dict[str, PciFunction] = {}

    def __call__(self, m: Machine) -> None:
        for name in self.names:
            function = m.platform.extras[name]
            assert isinstance(function, PciFunction)
            self.functions[name] = function


@pytest.mark.parametrize("release", RELEASES)
def test_edu_works(release: str) -> None:
    run = on_luemu(release, "edu_test", devices=("edu",))
    assert run.stop.kind is StopKind.POWER_OFF, run.text
    assert lines(run.text, "edu:", "pci:") == all_ok("00:03.0")


def test_behind_a_bridge_too() -> None:
    """The bridge gets a bus number and a window, edu behind it the window's beginning."""
    watched = Watched("bridge", "edu", "bridge/edu")
    run = on_luemu("old", "edu_test", devices=("bridge", "edu", "bridge/edu"), prepare=watched)
    assert lines(run.text, "edu:", "pci:") == all_ok("00:03.0", "01:00.0")
    bridge, edu, below = (watched.functions[n] for n in watched.names)
    assert isinstance(bridge, PciBridge)
    assert bridge.register(SECONDARY_BUS, 2) == 0x0101
    window = (bridge.register(MEMORY_BASE, 2) & 0xFFF0) << 16
    assert below.register(BAR0, 4) == window != edu.register(BAR0, 4) != 0
    assert below.requester == 0x100


def test_the_shutdown_silences_everything() -> None:
    """Looked at after the shutdown, before the jump."""
    names = ("bridge", "edu", "bridge/edu")
    watched = Watched(*names)
    with Machine(256 << 20, devices=names) as m:
        m.boot(Boot(elf("old").read_bytes(), "edu_test", initramfs("old new")))
        watched(m)
        m.serial_sinks.append(
            lambda port, byte, now: m.stop() if m.serial[0].endswith(b"Starting new kernel") else None
        )
        stop = m.run(max_instructions=200_000_000)
        text = m.console.decode()
        assert stop.kind is StopKind.REQUEST and "shutdown: pci" in text, text
        for name, function in watched.functions.items():
            assert not function.register(COMMAND, 2) & COMMAND_MASTER, f"{name} masters the bus"
            assert not function.msi_enabled and not function.s.intx, f"{name} still has something to say"
            assert function.register(COMMAND, 2) & COMMAND_MEMORY, f"{name} was never enabled"
        m.serial_sinks.clear()
        m.run(max_instructions=200_000_000)
        text = m.console.decode().replace("\r", "")
    second = text[text.index("Starting new kernel") :]
    assert lines(second, "edu:", "pci:") == all_ok("00:03.0", "01:00.0")


def test_a_bus_that_firmware_numbered_keeps_its_number() -> None:
    watched = Watched("bridge", "bridge/edu")

    def firmware(m: Machine) -> None:
        watched(m)
        watched.functions["bridge"].config_write(0x18, 4, 0x00070500, 0)

    run = on_luemu("old", "edu_test", devices=("bridge", "bridge/edu"), prepare=firmware)
    assert lines(run.text, "edu:", "pci:") == all_ok("05:00.0")
    assert watched.functions["bridge"].register(SECONDARY_BUS, 2) == 0x0705


@pytest.mark.parametrize(
    "numbers",
    [0x00000100, 0x00010201, 0x00050001],
    ids=["last-before-first", "foreign-primary", "its-own-bus"],
)
def test_numbers_that_lead_nowhere_are_replaced(numbers: int) -> None:
    watched = Watched("bridge", "bridge/edu")

    def firmware(m: Machine) -> None:
        watched(m)
        watched.functions["bridge"].config_write(0x18, 4, numbers, 0)

    run = on_luemu("old", "edu_test", devices=("bridge", "bridge/edu"), prepare=firmware)
    assert lines(run.text, "edu:", "pci:") == all_ok("01:00.0")


def test_an_address_of_firmware_is_kept() -> None:
    watched = Watched("edu", "bridge", "bridge/edu")

    def firmware(m: Machine) -> None:
        watched(m)
        watched.functions["edu"].config_write(BAR0, 4, 0xC0000000, 0)

    run = on_luemu("old", "edu_test", devices=("bridge", "edu", "bridge/edu"), prepare=firmware)
    assert lines(run.text, "edu:", "pci:") == all_ok("00:03.0", "01:00.0")
    assert watched.functions["edu"].register(BAR0, 4) == 0xC0000000
    assert watched.functions["bridge/edu"].register(BAR0, 4) == 0xC0100000


def test_without_edu_test_nothing_is_tried() -> None:
    run = on_luemu("old", "", devices=("edu",))
    assert lines(run.text, "edu:", "pci:") == ["edu: 00:03.0 version 1.0"]


@pytest.mark.parametrize("release", RELEASES)
def test_a_machine_without_known_functions_says_nothing_of_pci(release: str) -> None:
    plain = on_luemu(release, "")
    assert not lines(plain.text, "pci:", "edu:", "e1000:", "vfio", "iommu", "shutdown: pci")
    assert on_luemu(release, "", devices=("bridge",)).text.count("pci") == 0


@pytest.mark.parametrize("device", [(), ("bridge",), ("bridge", "edu")])
def test_qemu_prints_the_same(device: tuple[str, ...]) -> None:
    """Firmware gave out the addresses there; here the kernel did. Same words, to the end."""
    ours = on_luemu("old", "edu_test", devices=device)
    theirs = on_qemu("old", "edu_test", devices=[QEMU[d] for d in device])
    assert lines(theirs, "edu:", "pci:", "luemu: verdict") == lines(
        ours.text, "edu:", "pci:", "luemu: verdict"
    )


QEMU = {"edu": "edu,addr=3", "bridge": "pcie-root-port,id=bridge,addr=1,chassis=1"}


def test_qemu_behind_a_bridge() -> None:
    theirs = on_qemu("old", "edu_test", devices=["pcie-pci-bridge,id=b,addr=1", "edu,bus=b,addr=1"])
    assert lines(theirs, "edu:", "pci:") == all_ok("01:01.0")


@pytest.mark.parametrize("release", RELEASES)
def test_with_remapping_here_and_on_qemu(release: str) -> None:
    """DMA through tables, the fault after the page is unmapped, INTx and MSI through remapping entries."""
    ours = on_luemu(release, "edu_test", devices=("vtd", "edu"))
    expected = all_ok("00:03.0")
    expected.insert(
        2,
        "DMAR: 00:03.0: read of 0x400000 refused, reason 0x6; more of this function will not be said",
    )
    expected.insert(0, "DMAR: DMA is remapped, and so are interrupts")
    assert lines(ours.text, "edu:", "pci:", "DMAR:") == expected
    theirs = on_qemu(
        release,
        "edu_test",
        machine="q35,kernel-irqchip=split",
        devices=["intel-iommu,intremap=on", QEMU["edu"]],
    )
    assert lines(theirs, "edu:", "pci:", "DMAR:") == expected
