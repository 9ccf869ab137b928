"""/sys/kernel/debug/kho: the files of Linux 7.2, byte for byte, without its defects.

There, `out/fdt` ends before the sub-trees that came late, and is missing in a kernel that was handed over
to; and `in/` shows memory that was given away since.
"""

from __future__ import annotations

import pytest

from kho.abi import SUBTREE_LUO, SUBTREE_MEMBLOCK, SUBTREE_METADATA
from kho.handover import Handover
from tests.userspace import rig
from tests.userspace.test_handovers import at_the_jump

KHO = "/sys/kernel/debug/kho"
SUBTREES = (SUBTREE_LUO, SUBTREE_METADATA, SUBTREE_MEMBLOCK)
COMMAND = f"files {KHO}"


def listing(text: str) -> dict[str, tuple[str, str, bytes]]:
    """(mode, size, contents) by path below kho/."""
    out = {}
    for line in text.strip().split("\n"):
        path, mode, *rest = line.split(" ")
        out[path.removeprefix(KHO).lstrip("/")] = (
            mode, rest[0] if rest else "", bytes.fromhex(rest[1]) if len(rest) > 1 else b"",
        )  # fmt: skip
    return out


def expected(handover: Handover) -> dict[str, bytes]:
    """Contents of fdt and of the sub-trees, out of the memory that is handed over."""
    assert handover.fdt_phys is not None
    reader = handover.reader
    return {
        "fdt": reader.bytes(handover.fdt_phys, handover.fdt_size),
        **{f"sub_fdts/{s.name}": reader.bytes(s.phys, s.size) for s in handover.subtrees},
    }


def shows(files: dict[str, tuple[str, str, bytes]], where: str, contents: dict[str, bytes]) -> None:
    for path, data in contents.items():
        mode, _, found = files[f"{where}/{path}"]
        assert mode == "0400"
        assert found == data, f"{where}/{path}"


@pytest.mark.parametrize("kernels", [("old", "new", "old"), ("new", "old", "new")], ids="-".join)
def test_what_is_shown_is_what_is_handed_over(kernels: tuple[str, ...]) -> None:
    spec = rig.Spec(
        kernels, before=["lu s1 S:one F:1:4K:all", COMMAND], after=[COMMAND],
        cmdline="kho_scratch=48M,0,0 reserve_mem=1M:4096:golden", programs=("lu", "files"),
    )  # fmt: skip
    handovers = []
    with rig.Rig(spec) as r:
        for generation in (0, 1):
            handover = at_the_jump(r, generation)
            assert {s.name for s in handover.subtrees} == set(SUBTREES)
            handovers.append(expected(handover))
        outcome = r.finish().check()
    files = [listing(outcome.output(i)) for i, p in enumerate(outcome.programs) if p.argv[0] == "files"]
    cold, updated, again, last = files
    assert not any(path.startswith("in") for path in cold)
    for listed, handed_over in ((cold, handovers[0]), (again, handovers[1])):
        # sessions are written down after the program has run
        luo = f"sub_fdts/{SUBTREE_LUO}"
        before = handed_over | {luo: handed_over[luo][:16] + bytes(8) + handed_over[luo][24:]}
        shows(listed, "out", before)
    shows(updated, "in", handovers[0])
    shows(last, "in", handovers[1])
    assert set(updated) == set(last) == {
        "", "in/", "in/fdt", "in/sub_fdts/", *(f"in/sub_fdts/{s}" for s in SUBTREES),
        "out/", "out/fdt", "out/scratch_len", "out/scratch_phys", "out/sub_fdts/",
        *(f"out/sub_fdts/{s}" for s in SUBTREES),
    }  # fmt: skip
    assert {files[path][0] for files in (cold, updated) for path in files if path.endswith("/")} == {"0755"}


def test_scratch_is_listed_as_linux_does() -> None:
    """A line an area, those of no size too."""
    with rig.Rig(rig.Spec(("old", "new"), before=[COMMAND], programs=("files",))) as r:
        handover = at_the_jump(r, 0)
        assert handover.scratch is not None
        areas = [(a.phys, a.size) for a in handover.scratch]
        outcome = r.finish().check()
    files = listing(outcome.output(0))
    assert len(areas) == 3
    assert files["out/scratch_phys"][2].decode() == "".join(f"{phys:#x}\n" for phys, _ in areas)
    assert files["out/scratch_len"][2].decode() == "".join(f"{size:#x}\n" for _, size in areas)


def test_without_kho_there_is_nothing() -> None:
    outcome = rig.run("old", before=[COMMAND], programs=("files",), cmdline="kho=off").check()
    assert outcome.output(0) == f"{KHO} is not there\n"
