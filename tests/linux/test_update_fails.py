"""What must not be called ok: broken inputs, programs that fail, memory that changes, guests that lie.

Each clause of the verdict is broken on purpose here; a verdict that never failed would prove nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emu.cli import main
from emu.debug.update import Update
from emu.debug.verdict import Result
from emu.machine import Machine, StopKind
from kho.handover import Handover
from luo.check import TABLE
from luo.state import Luo
from tests.linux import updates
from tests.linux.build import LinuxBuild
from tests.linux.updates import DIGEST, SCRATCH, SPEC, at_entry, flip, handover_at_jump
from tests.oracles import require

pytestmark = pytest.mark.linux

BETWEEN_J_AND_K = "x86_64_start_kernel"
BETWEEN_K_AND_F = "memblock_free_all"
AFTER_F = "liveupdate_early_init"


# --- programs and kernels --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("sh -c 'exit 1'", "exited with status 1"),
        ("sh -c 'kill -9 $$'", "was killed by signal 9"),
        ("lu s2 S:other F:0x1:4K:all", "exited with status"),
    ],
)
def test_a_program_that_fails(linux: LinuxBuild, command: str, reason: str) -> None:
    files = [(linux.lu, "/bin/lu"), (require("busybox"), "/bin/sh")]
    result = updates.run(linux, after=[command], files=files)
    assert not result.ok and not result.violations
    (found,) = result.reasons
    assert reason in found and "(after, generation 1)" in found


def test_a_program_that_is_missing(linux: LinuxBuild) -> None:
    result = updates.run(linux, before=["nosuch"])
    assert not result.ok and result.updates == []
    assert "init: run nosuch: ENOENT (No such file or directory)" in result.reasons


def test_a_next_kernel_that_is_garbage(linux: LinuxBuild, tmp_path: Path) -> None:
    garbage = tmp_path / "kernel"
    garbage.write_bytes(b"no kernel at all" * 1000)
    result = updates.run(linux, new=garbage)
    assert not result.ok and result.updates == []
    assert "init: kexec_file_load: ENOEXEC (Exec format error)" in result.reasons
    assert "the host saw 0 of 1 updates" in " ".join(result.reasons)


def test_an_old_kernel_that_is_garbage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    garbage = tmp_path / "kernel"
    garbage.write_bytes(b"no kernel at all" * 1000)
    assert main(["run", "--old", str(garbage)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(garbage) in err
    assert main(["run", "--old", str(garbage), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False and document["error"]["kind"] == "bad-image"
    assert document["error"]["where"] == str(garbage)


def test_a_kernel_that_is_cut_off(
    linux: LinuxBuild, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "bzImage"
    short.write_bytes(linux.bzimage.read_bytes()[:100_000])
    status = main(["run", "--json", "--old", str(short), "--max-instructions", "1000000000"])
    document = json.loads(capsys.readouterr().out)
    assert status in (1, 2) and document["ok"] is False
    assert document.get("reasons") or document["error"]["message"]


@pytest.mark.parametrize("memory", ["16M", "31M"])
def test_too_little_memory_to_start(
    linux: LinuxBuild, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the kernel alone, and with its initramfs."""
    assert main(["run", "--old", str(linux.bzimage), "--memory", memory]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "memory" in err and err.count("\n") == 1


def test_too_little_memory_to_boot(linux: LinuxBuild) -> None:
    """The kernel panics and resets the machine; where, is said."""
    result = updates.run(linux, cmdline="mem=24M")
    assert not result.ok and result.updates == [] and result.stop.kind is StopKind.RESET
    assert result.reasons[0].startswith("the run ended by reset in phase cold-boot: ")
    assert "init did not get to the end of its plan" in result.reasons
    assert "cr0" in result.epitaph and "=>" in result.epitaph


def test_scratch_that_is_too_small(linux: LinuxBuild) -> None:
    result = updates.run(linux, cmdline="kho_scratch=8M,0,0")
    assert not result.ok and result.updates == []
    assert "init: kexec_file_load: EADDRNOTAVAIL (Address not available)" in result.reasons


@pytest.mark.parametrize("programs", [True, False])
def test_nothing_is_handed_over(linux: LinuxBuild, programs: bool) -> None:
    """Without KHO the kexec works all the same; it is no live update."""
    changes: dict[str, Any] = {} if programs else {"before": [], "after": []}
    result = updates.run(linux, cmdline=f"{SCRATCH} kho=off", **changes)
    assert not result.ok and result.stop.kind is StopKind.POWER_OFF
    assert any(r.startswith("the handover of update 1 cannot be read at J") for r in result.reasons)


def test_the_budget(linux: LinuxBuild) -> None:
    result = updates.run(linux, max_instructions=100_000_000)
    assert not result.ok and (result.stop.kind, result.stop.instructions) == (StopKind.BUDGET, 100_000_000)
    assert "the run ended by budget in phase cold-boot" in result.reasons[0]
    assert result.epitaph.startswith("rip 0x")


def test_a_moment_that_never_comes(linux: LinuxBuild, tmp_path: Path) -> None:
    at = [("save", "K", tmp_path / "a"), ("dump", "99999999999", tmp_path / "b")]
    result = updates.run(linux, updates=0, after=[], at=at)
    assert not result.ok and not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert [r for r in result.reasons if "the run never got there" in r] == [
        f"--save K={tmp_path / 'a'}: the run never got there",
        f"--dump 99999999999={tmp_path / 'b'}: the run never got there",
    ]


def test_a_kernel_without_symbols_is_not_verified(linux: LinuxBuild, tmp_path: Path) -> None:
    """Everything works, and the guest says so; but the host has seen nothing."""
    alone = tmp_path / "bzImage"
    alone.write_bytes(linux.bzimage.read_bytes())
    result = updates.run(linux, old=alone, new=alone)
    assert not result.ok and all(p["status"] == 0 for p in result.programs)
    (reason,) = result.reasons
    assert reason == "the host saw 0 of 1 updates; the kernel's symbols are not known: give --symbols"


# --- memory that changes ---------------------------------------------------------------------------


RUNNING = {id for id, row in TABLE.items() if set(row.how) & set("TU")} | {"INV-35", "INV-45"}
"""Rows that speak of the running kernels. What a damage makes a kernel do may break these as well: one that
refuses a handover boots cold and uses all memory; one more page in the tree is one more with the magic."""


def ids(result: Result) -> set[str]:
    """The rows of the handover itself that are broken."""
    return {v["id"] for v in result.violations} - RUNNING


Change = Callable[[Machine, Handover, Luo], None]


def payload(m: Machine, handover: Handover, luo: Luo) -> int:
    """Address of a byte of the preserved file."""
    memfd = luo.sessions[0].files[0].memfd
    assert memfd is not None
    return int(memfd.folio_phys[0]) + 100


def tampered(linux: LinuxBuild, function: str, change: Change) -> Result:
    """The small update with a change behind the guest's back."""
    with updates.update(linux) as u:
        done = at_entry(u, function, 1, lambda m: change(m, *handover_at_jump(u)))
        result = u.run()
        assert done, f"{function} was never entered"
        return result


def test_a_preserved_byte_changes_before_k(linux: LinuxBuild) -> None:
    where: list[int] = []

    def change(m: Machine, handover: Handover, luo: Luo) -> None:
        where.append(payload(m, handover, luo))
        flip(m, where[0])

    result = tampered(linux, BETWEEN_J_AND_K, change)
    assert not result.ok and ids(result) == {"INV-26"}
    page = where[0] & -4096
    assert (page, "K") in {(v["phys"], v["moment"]) for v in result.violations}
    assert any("one/0x1" in v["message"] for v in result.violations)


def test_a_preserved_byte_changes_after_k(linux: LinuxBuild) -> None:
    result = tampered(linux, BETWEEN_K_AND_F, lambda m, h, luo: flip(m, payload(m, h, luo)))
    assert not result.ok and ids(result) == {"INV-26"}
    moments = {v["moment"] for v in result.violations}
    assert "F" in moments and not moments & {"J", "K"}


@pytest.mark.parametrize(
    ("between", "moment"), [(BETWEEN_J_AND_K, "K"), (BETWEEN_K_AND_F, "F")], ids=["J-K", "K-F"]
)
def test_what_the_guest_says_is_not_enough(linux: LinuxBuild, between: str, moment: str) -> None:
    """A byte changes and changes back before any program looks: the guest reports full success."""
    with updates.update(linux) as u:
        where: list[int] = []

        def change(m: Machine) -> None:
            where.append(payload(m, *handover_at_jump(u)))
            flip(m, where[0])

        at_entry(u, between, 1, change)
        at_entry(u, AFTER_F, 1, lambda m: flip(m, where[0]))
        result = u.run()
    assert all(p["status"] == 0 for p in result.programs)
    assert f"sha256={DIGEST}" in result.programs[1]["output"] and "bad=0" in result.programs[1]["output"]
    assert not result.ok and ids(result) == {"INV-26"}
    assert moment in {v["moment"] for v in result.violations}


def test_a_guest_that_checks_nothing(linux: LinuxBuild) -> None:
    """No program of the new kernel looks at the data: the host does."""
    with updates.update(linux, after=[]) as u:
        at_entry(u, BETWEEN_J_AND_K, 1, lambda m: flip(m, payload(m, *handover_at_jump(u))))
        result = u.run()
    assert [p["status"] for p in result.programs] == [0]
    assert not result.ok and ids(result) == {"INV-26"}


def leaf(handover: Handover) -> int:
    """A byte of a leaf of the tree of preserved pages: one more page would be preserved."""
    return int(handover.tree.node_phys[handover.tree.node_level.argmin()]) + 3


def record(luo: Luo) -> int:
    memfd = luo.sessions[0].files[0].memfd
    assert memfd is not None
    return memfd.phys


TAMPERED: dict[str, tuple[Change, str]] = {
    "root FDT behind its end": (lambda m, h, luo: flip(m, (h.fdt_phys or 0) + 4000), "INV-49"),
    "tree": (lambda m, h, luo: flip(m, leaf(h), 0x10), "INV-49"),
    "memfd record": (lambda m, h, luo: flip(m, record(luo)), "INV-49"),
    "live update number": (lambda m, h, luo: flip(m, luo.phys + 64), "INV-49"),
    "memory that is neither": (lambda m, h, luo: flip(m, 0x2000000), "INV-30"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_metadata_changes_between_j_and_k(linux: LinuxBuild, what: str) -> None:
    """Right after the jump: the new kernel reads it changed, and may well not care; the host does."""
    change, id = TAMPERED[what]
    result = tampered(linux, BETWEEN_J_AND_K, change)
    assert not result.ok and ids(result) == {id}, (result.violations, result.reasons)


def test_the_root_fdt_gets_another_version(linux: LinuxBuild) -> None:
    """The new kernel refuses it and boots cold; the host says which invariant is broken."""

    def change(m: Machine, handover: Handover, luo: Luo) -> None:
        fdt = m.memory.read(handover.fdt_phys or 0, 4096).tobytes()
        m.memory.write((handover.fdt_phys or 0) + fdt.index(b"kho-v4"), b"kho-v3", "test")

    result = tampered(linux, BETWEEN_J_AND_K, change)
    assert not result.ok and ids(result) == {"INV-6"}, result.violations
    assert any("cannot be read at K" in r for r in result.reasons)


@pytest.mark.parametrize(
    ("field", "broken"),
    [
        ("place of an empty area", {"INV-29"}),
        # the new kernel takes what is not scratch for scratch, and allocates there
        ("size of the area", {"INV-29", "INV-30"}),
    ],
)
def test_the_scratch_list_changes(linux: LinuxBuild, field: str, broken: set[str]) -> None:
    """The list that kexec gave the new kernel: the arguments of kho_populate say where it is."""
    with updates.update(linux) as u:

        def change(m: Machine) -> None:
            at = m.cpus[0].registers()["rdx"]
            flip(m, at + (16 if field.startswith("place") else 8) + 2, 0x40)

        assert u.observer is not None
        done = at_entry(u, "kho_populate", 1, change)
        result = u.run()
    assert done and not result.ok
    assert ids(result) == broken, result.violations


def test_a_record_is_broken_before_the_jump(linux: LinuxBuild) -> None:
    """Seen at J already: it is the structure that is wrong, not a change on the way."""
    with updates.update(linux) as u:

        def change(m: Machine) -> None:
            luo = Luo.read(Handover.read(m.memory))
            assert luo is not None and luo.chain is not None
            flip(m, luo.chain.blocks[0].phys + 8, 2)  # the number of sessions in the block

        done = at_entry(u, "kernel_restart_prepare", 0, change)
        result = u.run()
    assert done and not result.ok
    assert "INV-26" not in ids(result)
    at_j = {v["id"] for v in result.violations if v["moment"] == "J"}
    # it was changed after the serialization, which is INV-49 for who saw that
    assert at_j - {"INV-49"} == {"INV-19"}, result.violations


def test_untouched_runs_have_no_violation(linux: LinuxBuild) -> None:
    """The control of the controls: the same probes, and no change."""
    with updates.update(linux) as u:
        done = [at_entry(u, f, 1, lambda m: None) for f in (BETWEEN_J_AND_K, BETWEEN_K_AND_F, AFTER_F)]
        result = u.run()
    assert all(done) and result.ok and not result.violations
    assert isinstance(u, Update) and SPEC in " ".join(result.programs[0]["argv"])
