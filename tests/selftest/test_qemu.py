"""The self-test guest on QEMU: the reference for what it must print, and the proof that it can fail.

`qemu_output` is for comparing with our machine: the same image and command line there.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from elftools.elf.segments import NoteSegment

from kernels.build import TARGETS, Target, build, compile_with_zig, project_root
from tests.oracles import require

MEMORY_MIB = 256
GROUPS = [
    "cpu", "fault", "string", "ring3", "fpu", "debug", "mmu", "smc", "acpi", "pci", "uart", "pic", "pit",
    "rtc", "pmtimer", "lapic", "ioapic", "hpet", "timing", "svm",
]  # fmt: skip

MAY_DIFFER: tuple[re.Pattern[str], ...] = ()
"""Lines that may differ between machines: none."""


def target() -> Target:
    return next(t for t in TARGETS if t.name == "selftest")


def elf() -> Path:
    """The image, built if need be."""
    path = build(project_root(), target())
    assert path is not None, "kernels/selftest has no sources"
    return path


DEVICES = (
    "-device", "intel-iommu,intremap=on,aw-bits=48", "-device", "e1000,addr=2,romfile=",
    "-device", "edu,addr=3",
)  # fmt: skip
"""What QEMU needs to have the devices of `EXTRA_GROUPS` where our machine has them."""
EXTRA_GROUPS = ["edu", "e1000", "vtd"]


def qemu_output(
    cmdline: str, *, machine: str = "q35", timeout: float = 120, devices: tuple[str, ...] = ()
) -> str:
    """What the guest prints on QEMU with this command line, from its first line to its last.

    Raises `subprocess.TimeoutExpired` if it does not end by itself. Skips the test without QEMU.
    """
    qemu = require("qemu-system-x86_64")
    run = subprocess.run(
        [
            qemu, "-accel", "tcg", "-machine", machine, *devices, "-cpu", "EPYC", "-m", str(MEMORY_MIB),
            "-kernel", elf(), "-append", cmdline, "-serial", "stdio", "-monitor", "none",
            "-display", "none", "-vga", "none", "-nic", "none", "-no-reboot",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.replace("\r\n", "\n")


@functools.cache
def full_run() -> str:
    """One run of everything."""
    return qemu_output("")


def names(output: str) -> list[str]:
    return [line.split(":")[0] for line in output.splitlines() if "/" in line.split(":")[0]]


def test_every_test_passes() -> None:
    output = full_run()
    last = output.splitlines()[-1]
    found = re.fullmatch(r"selftest: (\d+) tests, (\d+) failed", last)
    assert found, f"the guest did not reach its end:\n{output[-2000:]}"
    assert found[2] == "0", "\n".join(line for line in output.splitlines() if not line.endswith(": ok"))
    assert int(found[1]) == len(names(output)) >= 200


def test_every_group_and_nothing_else_prints() -> None:
    lines = full_run().splitlines()
    assert lines[0] == "selftest: started"
    assert all(line.endswith(": ok") for line in lines[1:-1])
    found = list(dict.fromkeys(name.split("/")[0] for name in names(full_run())))
    assert found == GROUPS
    assert len(set(names(full_run()))) == len(names(full_run())), "two tests have one name"


def test_groups_are_selected() -> None:
    some = names(qemu_output("only=mmu,acpi,fault skip=fault"))
    assert some == [n for n in names(full_run()) if n.split("/")[0] in ("mmu", "acpi")]


def test_loop_repeats() -> None:
    once = [n for n in names(full_run()) if n.startswith(("pci/", "fpu/"))]
    output = qemu_output("loop=3 only=pci,fpu")
    assert names(output) == 3 * once
    assert output.endswith(f"selftest: {3 * len(once)} tests, 0 failed\n")


def test_a_missing_device_is_noticed() -> None:
    output = qemu_output("only=acpi,hpet", machine="q35,hpet=off")
    assert "acpi/tables: FAILED" in output
    assert "hpet/capabilities: FAILED" in output
    assert output.endswith(", 2 failed\n")


def test_an_unexpected_fault_leaves_an_epitaph() -> None:
    output = qemu_output("do=pagefault")
    shown = dict(re.findall(r"^  (\w+) +(0x[0-9a-f]+)$", output, re.M))
    assert (shown["vector"], shown["error"], shown["cr2"]) == ("0xe", "0x2", "0x8000123456")
    assert output.endswith("selftest: crashed\n")


@pytest.mark.parametrize("what", ["triple", "fault-delivering"])
def test_triple_faults_end_the_machine(what: str) -> None:
    assert qemu_output(f"do={what}") == f"selftest: started\ndo {what}\n"


@pytest.mark.parametrize("what", ["hang", "deadlock", "idle-forever"])
def test_what_never_ends(what: str) -> None:
    require("qemu-system-x86_64")
    with pytest.raises(subprocess.TimeoutExpired) as stopped:
        qemu_output(f"do={what}", timeout=2)
    assert (stopped.value.stdout or b"").replace(b"\r\n", b"\n") == f"selftest: started\ndo {what}\n".encode()


@pytest.mark.parametrize("what", ["pagetables", "ticks", "unmapped"])
def test_the_workloads_end(what: str) -> None:
    assert qemu_output(f"do={what}").endswith("\ndone\n")


def test_a_bench_says_what_it_did() -> None:
    assert "bench rdtsc: start\nbench rdtsc: end 20000 times\n" in qemu_output("do=bench=rdtsc")
    assert "selftest: unknown action" in qemu_output("do=bench=nothing")
    assert "selftest: unknown action" in qemu_output("do=nothing")


def test_image_has_what_loaders_and_debuggers_need() -> None:
    with elf().open("rb") as f:
        image = ELFFile(f)
        assert image["e_type"] == "ET_EXEC"
        assert image.has_dwarf_info()
        table = image.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = {s.name: s for s in table.iter_symbols()}
        assert image["e_entry"] == symbols["start64"]["st_value"]
        assert symbols["epitaph"]["st_size"] == 8 * (2 + 22 + 5)
        notes = [n for s in image.iter_segments() if isinstance(s, NoteSegment) for n in s.iter_notes()]
        assert [f"{n['n_name']} {n['n_type']}" for n in notes] == ["Xen 18"], "the PVH note"
        for segment in image.iter_segments("PT_LOAD"):
            writable, executable = bool(segment["p_flags"] & 2), bool(segment["p_flags"] & 1)
            assert writable != executable, "text is read-only, data is never executable"
        for unit in image.get_dwarf_info().iter_CUs():
            top = unit.get_top_DIE()
            for key in ("DW_AT_name", "DW_AT_comp_dir"):
                assert not top.attributes[key].value.startswith(b"/"), "a path of the building machine"


def test_image_is_the_same_from_every_directory(tmp_path: Path) -> None:
    images = []
    for place in ("a", "another directory"):
        root = tmp_path / place
        shutil.copytree(project_root() / "kernels" / "selftest", root / "kernels" / "selftest")
        sources = [p for pattern in target().sources for p in sorted(root.glob(pattern))]
        compile_with_zig(root, target().flags, sources, root / "selftest.elf")
        images.append((root / "selftest.elf").read_bytes())
    assert images[0] == images[1]
    assert images[0] == elf().read_bytes()
