"""What the next kernel is told of devices is damaged, or a lie: it stops them, says why, and goes on itself.

A record that is changed as a whole is found by its checksum; under a checksum that is right, fields are
impossible, or not so. What can not be found out (which bytes of configuration space the program saw) harms
nobody but the program.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from emu.devices.pci import BAR0, COMMAND, COMMAND_MASTER
from emu.machine import Machine, StopKind
from luo.abi_devices import IOMMUFD_COMPATIBLE, PCI_COMPATIBLE, VFIO_COMPATIBLE, checksum
from luo.state import Luo
from tests.userspace.rig import Rig
from tests.userspace.test_vfio_update import WORKS, edu_of, said, spec


def records(r: Rig) -> dict[str, int]:
    """Where the records are, at the jump."""
    r.run_to(0, "kexec:jump")
    luo = Luo.read(r.handover(0))
    assert luo is not None and luo.flb_page is not None
    found = {flb.compatible: flb.data for flb in luo.flb_page.flbs}
    return found | {f.compatible: f.data for s in luo.sessions for f in s.files}


def flip(m: Machine, at: int) -> None:
    m.memory.write(at, bytes([m.memory.read(at, 1).tobytes()[0] ^ 0x10]), "test")


def damaged(where: str, offset: int) -> Callable[[Rig], None]:
    def damage(r: Rig) -> None:
        flip(r.machine, records(r)[where] + offset)

    return damage


def other_device(r: Rig) -> None:
    records(r)
    edu_of(r.machine).poke(0, 4, 0x4321_1234)


def moved(r: Rig) -> None:
    records(r)
    edu_of(r.machine).config_write(BAR0, 4, 0xC800_0000, r.machine.ticks)


@pytest.mark.parametrize(
    ("damage", "log"),
    [
        (damaged(PCI_COMPATIBLE, 0), "wrong checksum"),
        (damaged(PCI_COMPATIBLE, 8), "wrong checksum"),
        (damaged(PCI_COMPATIBLE, 66), "wrong checksum"),
        (damaged(VFIO_COMPATIBLE, 0), "a record is refused: wrong checksum"),
        (damaged(VFIO_COMPATIBLE, 17), "a record is refused: wrong checksum"),
        (damaged(VFIO_COMPATIBLE, 100), "a record is refused: wrong checksum"),
        (damaged(IOMMUFD_COMPATIBLE, 16), "DMAR: what the previous kernel handed over is refused"),
        (other_device, "functions that were handed over are not there, or not as they were"),
        (moved, "functions that were handed over are not there, or not as they were"),
    ],
)
def test_damage_stops_the_device(damage: Callable[[Rig], None], log: str) -> None:
    """No DMA any more, a line that says why, and EIO for the program."""
    with Rig(spec("msi")) as r:
        damage(r)
        r.run_to(1, "luo:session_retrieve")
        assert not edu_of(r.machine).register(COMMAND, 2) & COMMAND_MASTER, "the function is still a master"
        outcome = r.finish()
    assert outcome.log(log), outcome.console[-2000:]
    assert "device >= 0: no" in said(outcome)
    assert "retrieve(3) = -5 (I/O error)" in said(outcome)


SIZES = {PCI_COMPATIBLE: 4096, VFIO_COMPATIBLE: 312}


def lie(r: Rig, at: int, where: str, offset: int, value: int, size: int) -> None:
    """Change a field of the record at `at` and make its checksum right."""
    data = bytearray(r.machine.memory.read(at, SIZES[where]).tobytes())
    data[offset : offset + size] = value.to_bytes(size, "little")
    data[:8] = checksum(bytes(data[8:])).to_bytes(8, "little")
    r.machine.memory.write(at, bytes(data), "test")


FUNCTION = 64
"""offset of the first function in the record of the PCI core"""
NO_KIND, NOT_AS_THEY_WERE = "a function of no kind that goes over", "not there, or not as they were"


@pytest.mark.parametrize(
    ("where", "offset", "value", "size", "log"),
    [
        (PCI_COMPATIBLE, 8, 0, 4, "impossible number of functions"),
        (PCI_COMPATIBLE, 8, 33, 4, "impossible number of functions"),
        (PCI_COMPATIBLE, 8, 2, 4, "functions out of order"),
        (PCI_COMPATIBLE, FUNCTION, 0x20, 2, NOT_AS_THEY_WERE),
        (PCI_COMPATIBLE, FUNCTION + 2, 0x8086, 2, NOT_AS_THEY_WERE),
        (PCI_COMPATIBLE, FUNCTION + 4, 0x100E, 2, NOT_AS_THEY_WERE),
        (PCI_COMPATIBLE, FUNCTION + 6, 1, 2, NO_KIND),
        (PCI_COMPATIBLE, FUNCTION + 6, 8, 2, NO_KIND),
        (PCI_COMPATIBLE, FUNCTION + 8, 0x20000, 4, NOT_AS_THEY_WERE),
        (PCI_COMPATIBLE, FUNCTION + 12, 1, 1, NO_KIND),
        (PCI_COMPATIBLE, FUNCTION + 12, 2, 1, NO_KIND),
        (PCI_COMPATIBLE, FUNCTION + 16, 0xC0100000, 8, NOT_AS_THEY_WERE),
        (PCI_COMPATIBLE, FUNCTION + 16, 0xC0000800, 8, "an impossible BAR"),
        (PCI_COMPATIBLE, FUNCTION + 24, 0xC0000000, 8, "an impossible BAR"),
        (PCI_COMPATIBLE, FUNCTION + 64, 0x100001, 8, "an impossible BAR"),
        (PCI_COMPATIBLE, FUNCTION + 64, 2, 8, "an impossible BAR"),
        (PCI_COMPATIBLE, FUNCTION + 21, 0x34, 1, "an impossible BAR"),
        (PCI_COMPATIBLE, FUNCTION + 16, 0x00000000, 8, "an impossible BAR"),
        (PCI_COMPATIBLE, FUNCTION + 64, 0x40000000, 8, "an impossible BAR"),
        (VFIO_COMPATIBLE, 8, 0x20, 2, "its function was not handed over"),
        (VFIO_COMPATIBLE, 8, 0, 2, "its function was not handed over"),
        (VFIO_COMPATIBLE, 10, 0x8086, 2, "its function is another one"),
        (VFIO_COMPATIBLE, 16, 2, 4, "an interrupt of no kind"),
        (VFIO_COMPATIBLE, 16, 0xFFFFFFFF, 4, "an interrupt of no kind"),
        (VFIO_COMPATIBLE, 20, 0x80000000, 4, "unknown flags"),
        (VFIO_COMPATIBLE, 24, 0, 4, "not bound or not attached"),
        (VFIO_COMPATIBLE, 28, 0, 4, "not bound or not attached"),
    ],
)
def test_a_lie_is_found(where: str, offset: int, value: int, size: int, log: str) -> None:
    """Fields that are impossible, or are not so, under a checksum that is right."""
    with Rig(spec("msi")) as r:
        lie(r, records(r)[where], where, offset, value, size)
        outcome = r.finish()
        assert not edu_of(r.machine).register(COMMAND, 2) & COMMAND_MASTER, "the function is still a master"
    assert outcome.log(log), outcome.console[-2000:]
    assert "retrieve(3) = -5 (I/O error)" in said(outcome)


@pytest.mark.parametrize("seed", range(6))
def test_random_lies_crash_nothing(seed: int) -> None:
    """Whatever a record says: the kernel runs on, and the device writes to nothing but its memory."""
    chance = random.Random(seed)
    with Rig(spec("intx", "intx")) as r:
        at = records(r)
        for _ in range(3):
            where = chance.choice(sorted(SIZES))
            offset = chance.randrange(8, 176 if where == PCI_COMPATIBLE else SIZES[where])
            lie(r, at[where], where, offset, chance.randrange(256), 1)
        outcome = r.finish()
    assert outcome.stop.kind is StopKind.POWER_OFF, outcome.console[-2000:]
    assert not outcome.log("Kernel panic") and not outcome.log("BUG")


@pytest.mark.parametrize("offset", [0, 8, 16])
def test_damage_when_nothing_is_looked_at_beforehand(offset: int) -> None:
    """`luo_strict=linux`: retrieving finds it, and the session can be finished."""
    work = spec("msi")
    work.later = "luo_strict=linux"
    with Rig(work) as r:
        flip(r.machine, records(r)[VFIO_COMPATIBLE] + offset)
        outcome = r.finish()
    assert outcome.stop.kind is StopKind.POWER_OFF, outcome.console[-2000:]
    assert "retrieve(3) = -5 (I/O error)" in said(outcome)


def test_luo_strict_takes_what_is_right() -> None:
    work = spec("msi", "msi")
    work.later = "luo_strict=linux"
    with Rig(work) as r:
        outcome = r.finish().check()
    assert said(outcome)[: len(WORKS)] == WORKS
