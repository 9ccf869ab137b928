"""A device goes over to the next kernel while it works: VFIO file, iommufd and memory of one program.

The programs are kernels/user/tests/vfio_update.c; what the machine did meanwhile is asked of the machine.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from emu.devices.edu import Edu
from emu.devices.pci import COMMAND, COMMAND_MASTER, PciFunction
from emu.initproto import RecordReader, Transcript
from emu.machine import Machine
from tests.guest.running import elf
from tests.oracles import require
from tests.userspace.rig import Outcome, Rig, Spec

PAIRS = [("old", "new"), ("new", "old")]
DEVICES = ("vtd", "edu")
WORKS = [
    "memory_fd >= 0: yes", "iommu >= 0: yes", "device >= 0: yes", "command() == 6: yes",
    "bar != MAP_FAILED: yes", "reg(4) == ~LIVENESS: yes",
    "!memcmp(memory, memory + 8192, 2048): yes", "!memcmp(memory, memory + 8192, 2048): yes",
]  # fmt: skip
"""Identity, memory, registers and DMA are there as if nothing had happened."""
FINISHED = [
    "finish() = 0", "reg(4) == ~LIVENESS: yes", "!memcmp(memory, memory + 8192, 2048): yes",
    "!memcmp(memory, memory + 8192, 2048): yes", "map(0x800000, memory, 4096) = 0", "detach() = 0",
    "attach(2) = 0", "ioctl(device, VFIO_DEVICE_RESET) = 0", "reg(4) == 0: yes", "command() & 2: yes",
]  # fmt: skip
"""After that it is a device like any other."""


def spec(
    before: str = "",
    after: str = "",
    kernels: tuple[str, ...] = PAIRS[0],
    devices: tuple[str, ...] = DEVICES,
) -> Spec:
    return Spec(
        kernels,
        before=[f"vfio_update before {before}"],
        after=[f"vfio_update after {after}"],
        programs=("vfio_update",),
        cmdline="kho_scratch=48M,0,0 vfio-pci.ids=all",
        devices=devices,
    )


def said(outcome: Outcome, program: int = -1) -> list[str]:
    return outcome.output(program).splitlines()


def edu_of(m: Machine, name: str = "edu") -> Edu:
    edu = m.platform.extras[name]
    assert isinstance(edu, Edu)
    return edu


def interrupts(lines: list[str]) -> list[str]:
    """What the program said of interrupts."""
    return [line for line in lines if line.startswith(("bits", "signals", "listen", "unmask"))]


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
@pytest.mark.parametrize("memory", ["", "huge"])
def test_a_device_goes_over(kernels: tuple[str, ...], memory: str) -> None:
    with Rig(spec(memory, kernels=kernels)) as r:
        outcome = r.finish().check()
    assert said(outcome) == [*WORKS, *FINISHED]


def test_behind_a_bridge() -> None:
    """Bus number and windows of the bridge stay too."""
    with Rig(spec(devices=("vtd", "bridge", "bridge/edu"))) as r:
        r.run_to(0, "kexec:jump")
        functions = [f for f in r.machine.platform.extras.values() if isinstance(f, PciFunction)]
        before = [bytes(f.s.config) for f in functions]
        r.run_to(1, "luo_retrieve_file")
        assert [bytes(f.s.config) for f in functions] == before, "configuration space was written to"
        outcome = r.finish().check()
    assert said(outcome) == [*WORKS, *FINISHED]


TWO = ("vtd", "bridge", "edu", "bridge/edu")
SECOND = [
    "device >= 0: yes", "command() == 6: yes", "bar != MAP_FAILED: yes", "reg(4) == ~0x2468U: yes",
    "!memcmp(memory + 0x1000, memory + 0x5000, 1024): yes",
]  # fmt: skip


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_two_devices_in_one_address_space(kernels: tuple[str, ...]) -> None:
    with Rig(spec("second", "second", kernels, TWO)) as r:
        outcome = r.finish().check()
    assert said(outcome) == [*WORKS, *SECOND, *FINISHED]


def test_one_of_two_is_retrieved() -> None:
    """The other one is stopped; what it shared with the first stays the first's."""
    with Rig(spec("second", "", devices=TWO)) as r:
        outcome = r.finish().check()
        assert not edu_of(r.machine, "bridge/edu").register(COMMAND, 2) & COMMAND_MASTER
    assert said(outcome) == [*WORKS, *FINISHED]
    assert outcome.log("vfio_luo: 01:00.0 was not retrieved: stopped")


def test_one_of_two_goes_over() -> None:
    """The one that does not is silenced, although it is in the same address space."""
    with Rig(spec("second alone", "", devices=TWO)) as r:
        r.run_to(0, "kexec:jump")
        assert not edu_of(r.machine, "bridge/edu").register(COMMAND, 2) & COMMAND_MASTER
        outcome = r.finish().check()
    assert said(outcome) == [*WORKS, *FINISHED]


def test_nothing_of_it_is_written_until_the_program_does() -> None:
    """Registers and configuration space from the freeze to the retrieval, but for what was free to change."""
    with Rig(spec("intx raise")) as r:
        r.run_to(0, "kexec:shutdown")
        edu = edu_of(r.machine)
        before = (bytes(edu.s.config), edu.s.liveness, edu.s.interrupts, edu.s.intx)
        r.run_to(1, "luo_retrieve_file")
        assert (bytes(edu.s.config), edu.s.liveness, edu.s.interrupts, edu.s.intx) == before
        assert edu.register(COMMAND, 2) & COMMAND_MASTER


@pytest.mark.parametrize("names", [DEVICES, ("vtd", "bridge", "edu", "bridge/edu")], ids=len)
def test_others_are_silent(names: tuple[str, ...]) -> None:
    """The function that does not go over masters nothing when the next kernel starts, its bridge neither."""
    with Rig(spec(devices=names)) as r:
        r.run_to(0, "kexec:jump")
        masters = {
            n: bool(f.register(COMMAND, 2) & COMMAND_MASTER)
            for n, f in r.machine.platform.extras.items()
            if isinstance(f, PciFunction)
        }
        assert masters.pop("edu") and not any(masters.values())


@pytest.mark.parametrize("kernels", [("old", "new", "old"), ("new", "new", "new", "new")], ids="-".join)
def test_through_a_chain(kernels: tuple[str, ...]) -> None:
    """Finished and preserved again by each kernel's program."""
    with Rig(spec("intx chain", "intx more", kernels)) as r:
        outcome = r.finish().check()
    after = [n for n, p in enumerate(outcome.programs) if p.argv[1] == "after"]
    assert len(after) == len(kernels) - 1
    for n in after:
        lines = said(outcome, n)
        assert lines[: len(WORKS)] == WORKS
        assert lines[-4:] == [
            "session >= 0: yes", "preserve(memory_fd, 1) = 0", "preserve(iommu, 2) = 0",
            "preserve(device, 3) = 0",
        ]  # fmt: skip


def test_binding_and_attaching_again_change_nothing() -> None:
    with Rig(spec("intx", "rebind")) as r:
        outcome = r.finish().check()
    assert said(outcome) == [
        *WORKS, "bind_to(iommu) = 0", "attach(2) = 0", "attach(hwpt) = 0",
        "attach(99) = -2 (No such file or directory)", "bind_to(luo) = -77 (File descriptor in bad state)",
        "detach() = -16 (Resource busy)", "ioctl(device, VFIO_DEVICE_RESET) = -16 (Resource busy)",
        "preserve(device, 9) = -22 (Invalid argument)", "reg(4) == ~LIVENESS: yes", *FINISHED,
    ]  # fmt: skip


# ---- interrupts ------------------------------------------------------------------------------------------

PHASES = {
    "P9": (0, "luo_session_serialize"),
    "P10": (0, "kexec:shutdown"),
    "P11": (0, "kexec:jump"),
    "P12": (1, "kernel:start"),
    "P13": (1, "kho:populate"),
    "P14": (1, "boot:memblock_setup"),
    "P15": (1, "kho:memory_init"),
    "P16": (1, "liveupdate_early_init"),
    "P17": (1, "kho:init"),
    "P18": (1, "luo_session_deserialize"),
    "P19": (1, "luo:session_retrieve"),
    "P20": (1, "luo_retrieve_file"),
}


def once(irq: str, bits: int) -> list[str]:
    """One signal for what came while nobody listened, and one for the next."""
    unmask = ["unmask() = 0"] if irq == "intx" else []
    return [
        f"bits {bits:#x}", "signals() = 0", "listen_to(event) = 0", "signals() = 1", "signals() = 0",
        f"bits {bits:#x}", *unmask, "signals() = 0", "signals() = 1", *unmask, "signals() = 0",
    ]  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("irq", ["intx", "msi"])
def test_an_interrupt_in_each_phase_is_delivered_once(irq: str, phase: str) -> None:
    with Rig(spec(irq, irq)) as r:
        r.run_to(*PHASES[phase])
        edu_of(r.machine)._raise(0x20, r.machine.ticks)
        outcome = r.finish().check()
    assert interrupts(said(outcome)) == once(irq, 0x20)


def test_none_came() -> None:
    """A pin then says nothing; a message is made up for, because nobody can know."""
    for irq, first in (("intx", 0), ("msi", 1)):
        with Rig(spec(irq, irq)) as r:
            outcome = r.finish().check()
        lines = interrupts(said(outcome))
        assert lines[:4] == ["bits 0", "signals() = 0", "listen_to(event) = 0", f"signals() = {first}"]
        assert "signals() = 2" not in lines


def test_a_pin_that_was_passed_on_and_not_unmasked_is_passed_on_again() -> None:
    """The program before may not have read its eventfd, which is gone."""
    with Rig(spec("intx raise ack masked", "intx")) as r:
        outcome = r.finish().check()
    lines = interrupts(said(outcome))
    assert lines[:5] == ["bits 0", "signals() = 0", "listen_to(event) = 0", "signals() = 1", "signals() = 0"]


@pytest.mark.parametrize("irq", ["intx", "msi"])
def test_switching_off_what_was_on(irq: str) -> None:
    with Rig(spec(irq, irq + " off")) as r:
        r.at(1, "luo_file_finish", lambda m: found.append(edu_of(m).msi_enabled))
        found: list[bool] = []
        outcome = r.finish().check()
    assert "irqs(irq_index(), VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0) = 0" in said(
        outcome
    )
    assert found and not any(found)


# ---- what is refused in the old kernel -------------------------------------------------------------------

EINVAL, EBUSY = "-22 (Invalid argument)", "-16 (Resource busy)"


@pytest.mark.parametrize(
    ("words", "lines", "log"),
    [
        ("no-iommufd", [f"preserve(device, 3) = {EINVAL}"], "its iommufd is not handed over"),
        ("no-memory", [f"preserve(iommu, 2) = {EINVAL}"], "not handed over by a file of its own"),
        ("private", [f"preserve(iommu, 2) = {EINVAL}"], "not handed over by a file of its own"),
        ("too-early", [f"preserve(device, 3) = {EINVAL}", "preserve(device, 3) = 0"], "its iommufd is not"),
        ("unbound", [f"preserve(device, 3) = {EINVAL}"], "it is not bound"),
        ("unbound", [f"preserve(device, 3) = {EINVAL}"], "it is attached to nothing"),
        ("again", ["preserve(device, 3) = -17 (File exists)", f"preserve(device, 4) = {EBUSY}"], ""),
        (
            "change",
            [f"ioctl(device, VFIO_DEVICE_RESET) = {EBUSY}", f"detach() = {EBUSY}", "attach(ioas) = 0",
             f"map(0x800000, memory, 4096) = {EBUSY}", "reg(4) == ~LIVENESS: yes"],
            "",
        ),
        ("undo", ["ioctl(device, VFIO_DEVICE_RESET) = 0", "detach() = 0", "preserve(device, 3) = 0"], ""),
    ],
)  # fmt: skip
def test_what_can_not_be_preserved(words: str, lines: list[str], log: str) -> None:
    with Rig(spec(words)) as r:
        outcome = r.finish()
    before = said(outcome, 0)
    assert [line for line in lines if line not in before] == []
    assert not log or outcome.log(log), f"nobody said {log!r}"


def test_closing_the_session_takes_it_back() -> None:
    """Nothing goes over then: the function is stopped as any other, and nothing is adopted."""
    with Rig(spec("close")) as r:
        r.run_to(0, "kexec:jump")
        assert not edu_of(r.machine).register(COMMAND, 2) & COMMAND_MASTER
        outcome = r.finish()
    assert said(outcome) == ["no session: No such file or directory"]
    assert not outcome.log("as the previous kernel left it")


@pytest.mark.parametrize("irq", ["intx", "msi"])
def test_an_update_that_fails_after_the_freeze(irq: str) -> None:
    """Everything is undone: the device works and interrupts as before, and the next update takes it over."""
    with Rig(spec(irq + " fail", irq)) as r:
        outcome = r.finish().check()
    before = said(outcome, 0)
    unmask = ["unmask() = 0"] if irq == "intx" else []
    assert before[before.index(f"reboot(RB_KEXEC) = {EINVAL}") :] == [
        f"reboot(RB_KEXEC) = {EINVAL}", f"reboot(RB_KEXEC) = {EINVAL}", "reg(4) == ~LIVENESS: yes",
        "!memcmp(memory, memory + 8192, 2048): yes", "signals() = 0", "signals() = 1", *unmask,
        "signals() = 0",
    ]  # fmt: skip
    assert said(outcome)[: len(WORKS)] == WORKS


# ---- what the new kernel's program may leave out -----------------------------------------------------------


def test_nobody_asks_for_it() -> None:
    with Rig(spec("msi", "nothing")) as r:
        outcome = r.finish().check()
        assert not edu_of(r.machine).register(COMMAND, 2) & COMMAND_MASTER
    assert said(outcome) == [
        "finish() = 0", "bind_to(iommu) = 0", "bar != MAP_FAILED: yes", "reg(4) == 0: yes",
        "!(command() & 4): yes",
    ]  # fmt: skip
    assert outcome.log("vfio_luo: 00:03.0 was not retrieved: stopped")


def test_the_device_before_its_iommufd() -> None:
    with Rig(spec("", "late")) as r:
        outcome = r.finish().check()
    assert said(outcome) == [
        f"pread(device, &c, 2, CONFIG + 4) = {EINVAL}", f"finish() = {EBUSY}", *WORKS, *FINISHED
    ]  # fmt: skip
    assert outcome.log("its iommufd was not retrieved: not finished")


def test_the_device_without_its_iommufd() -> None:
    """It is never finished; at the end of the machine it is stopped."""
    with Rig(spec("", "no-iommufd")) as r:
        outcome = r.finish()
        assert not edu_of(r.machine).register(COMMAND, 2) & COMMAND_MASTER
    assert f"finish() = {EBUSY}" in said(outcome)


def test_until_it_is_retrieved_nobody_gets_it() -> None:
    with Rig(spec("", "steal")) as r:
        outcome = r.finish().check()
    assert said(outcome) == [f"bind_to(iommu) = {EBUSY}", *WORKS, *FINISHED]


def test_a_kernel_without_live_update_stops_it() -> None:
    """It adopts nothing that it would have to give to somebody: the function is set up like any other."""
    work = spec()
    work.later = "liveupdate=off"
    with Rig(work) as r:
        r.run_to(1, "init:begin")
        assert not edu_of(r.machine).register(COMMAND, 2) & COMMAND_MASTER, "the function is still a master"


# ---- on QEMU -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("irq", ["intx", "msi"])
@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_qemu_hands_it_over_too(tmp_path: Path, kernels: tuple[str, ...], irq: str) -> None:
    """Its edu can not be reset, and interrupts when the program before says so; all else is as here."""
    work = spec(f"{irq} raise", irq, kernels)
    (tmp_path / "initramfs").write_bytes(work.initramfs())
    command: list[str | Path] = [
        require("qemu-system-x86_64"), "-accel", "tcg", "-machine", "q35,kernel-irqchip=split",
        "-cpu", "EPYC", "-m", "128", "-nodefaults", "-display", "none", "-no-reboot",
        "-serial", f"file:{tmp_path}/console",
        "-serial", f"file:{tmp_path}/records", "-kernel", elf(kernels[0]), "-append", work.command_line(0),
        "-initrd", tmp_path / "initramfs", "-device", "intel-iommu,intremap=on", "-device", "edu,addr=3",
    ]  # fmt: skip
    subprocess.run(command, stdin=subprocess.DEVNULL, timeout=120, check=True)
    transcript = Transcript()
    transcript.add(RecordReader().feed((tmp_path / "records").read_bytes()))
    console = (tmp_path / "console").read_text(errors="replace")
    assert [p.status for p in transcript.programs] == [0, 0], console[-2000:]
    lines = transcript.programs[-1].output.decode().replace("\r", "").splitlines()
    without_reset = {"RESET) = 0": "RESET) = -22 (Invalid argument)", "reg(4) == 0: yes": "reg(4) == 0: no"}
    finished = list(FINISHED)
    for n, line in enumerate(finished):
        for ours, theirs in without_reset.items():
            finished[n] = finished[n].replace(ours, theirs) if ours in line else finished[n]
    assert lines == [*WORKS, *once(irq, 1), *finished]
    assert "DMA is remapped, and so are interrupts, as the previous kernel left it" in console
