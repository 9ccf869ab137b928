"""Handovers of a real Linux 7.2.13, decoded completely: as its independent walker and the recorded digests
say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kho.abi import PAGE_SIZE
from kho.handover import Handover
from kho.image import open_image
from kho.memory import Buffer
from kho.setup_data import ScratchArea, ScratchList
from luo.abi import MEMFD_COMPATIBLE
from luo.check import check, compare
from luo.state import Luo
from tests.luo.images import RECORDED

IMAGES = sorted(RECORDED.glob("*/*.pruned.raw.zst"))
SUFFIX = ".pruned.raw.zst"


def beside(path: Path, suffix: str) -> Any:
    """A JSON document of the same recording."""
    return json.loads(path.with_name(path.name.removesuffix(SUFFIX) + suffix).read_text("utf-8"))


def scratch_of(facts: Any) -> ScratchList:
    """Where the recording says that the scratch list is."""
    return ScratchList(int(facts["scratch_list_pa"], 0), 16 * len(facts["scratch"]))


def test_the_recordings_are_here() -> None:
    assert len(IMAGES) == 14
    assert (RECORDED / "demo").resolve() in IMAGES


@pytest.fixture(params=IMAGES, ids=[f"{p.parent.name}/{p.name.removesuffix(SUFFIX)}" for p in IMAGES])
def image(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_found_without_help(image: Path) -> None:
    facts = beside(image, ".json")
    memory = open_image(image).memory
    assert memory is not None
    handover = Handover.read(memory)
    assert handover.fdt_phys == int(facts["kho_fdt_pa"], 0)
    if "args" in facts:  # the second kernel: setup_data leads to everything
        assert handover.location.found_by == "setup_data"
        assert handover.location.scratch_phys == int(facts["scratch_list_pa"], 0)
        entry = handover.location.kho_data
        assert entry is not None and handover.location.chain is not None
        recorded = facts["kho_setup_data"][0]
        assert {name: getattr(entry, name) for name in recorded} == recorded
        chain = [(item["pa"], item["type"], item["len"]) for item in facts["setup_data"]]
        assert handover.location.chain.entries == chain
    else:
        assert handover.scratch is None


def test_kho_is_decoded_completely(image: Path) -> None:
    facts, walk = beside(image, ".json"), beside(image, ".walk.json")
    memory = open_image(image).memory
    assert memory is not None
    handover = Handover.read(memory, int(facts["kho_fdt_pa"], 0), scratch_of(facts))
    assert handover.fdt_size == walk["fdt_totalsize"]
    nodes = {
        path: {n: v.hex() for n, v in node.properties.items()} for path, node in handover.fdt.root.walk()
    }
    assert nodes == walk["fdt"]
    assert handover.tree.root == walk["radix_root"]
    levels = zip(handover.tree.node_level.tolist(), handover.tree.node_phys.tolist(), strict=True)
    assert sorted(levels) == sorted(map(tuple, walk["radix_nodes"]))
    preserved = handover.preserved
    blocks = zip(preserved.phys.tolist(), preserved.order.tolist(), preserved.keys.tolist(), strict=True)
    assert list(map(list, blocks)) == walk["preserved"]
    assert handover.scratch == [ScratchArea(int(a, 0), int(s, 0)) for a, s in facts["scratch"]]
    blobs = {}
    for subtree in handover.subtrees:
        blobs[subtree.name] = [subtree.phys, subtree.size, handover.blob(subtree, PAGE_SIZE).hex()]
    assert blobs == walk["blobs"]
    metadata = handover.metadata
    assert metadata is not None
    assert {
        "version": metadata.version,
        "release": metadata.previous_release,
        "kexec_count": metadata.kexec_count,
    } == walk["kexec_metadata"]
    assert not list(handover.findings)


def test_luo_is_decoded_completely(image: Path) -> None:
    facts, walk = beside(image, ".json"), beside(image, ".walk.json").get("luo")
    memory = open_image(image).memory
    assert memory is not None
    handover = Handover.read(memory)
    luo = Luo.read(handover)
    if not walk:
        assert luo is None
        return
    assert luo is not None and luo.flb_page is not None and luo.chain is not None
    assert luo.compatible == walk["compatible"]
    assert luo.liveupdate_num == walk["liveupdate_num"]
    assert (luo.sessions_phys, luo.flbs_phys) == (walk["sessions_pa"], walk["flbs_pa"])
    assert luo.flb_page.pages == walk["flb"]["pgcnt"] and luo.flb_page.count == walk["flb"]["count"]
    assert [[b.phys, b.count, b.next] for b in luo.chain.blocks] == walk.get("session_blocks", [])
    sessions = []
    digests: dict[str, str | None] = {}
    for session in luo.sessions:
        blocks = [[b.phys, b.count, b.next] for b in session.chain.blocks] if session.chain else []
        files = [describe(handover, file) for file in session.files]
        digests |= {f"{session.name}/{file['token']:#x}": file["sha256"] for file in files}
        sessions.append(
            {
                "name": session.name,
                "files_pa": session.files_phys,
                "count": session.count,
                "blocks": blocks,
                "files": files,
            }
        )
    expected = [{"blocks": [], "files": [], **item} for item in walk.get("sessions", [])]
    assert sessions == expected
    assert digests == facts["expected_sha256"]


def describe(handover: Handover, file: Any) -> dict[str, Any]:
    """A file in the words of the recorded walk."""
    memfd = file.memfd
    area = memfd.area
    shown: dict[str, Any] = {
        "ser_pa": memfd.phys,
        "pos": memfd.pos,
        "size": memfd.size,
        "seals": memfd.seals,
        "flags": memfd.flags,
        "nr_folios": memfd.nr_folios,
        "vm_first": memfd.descriptor.first,
        "vm_total_pages": memfd.descriptor.total_pages,
        "vm_flags": memfd.descriptor.flags,
        "vm_order": memfd.descriptor.order,
        "sha256": memfd.sha256(handover.reader),
        "token": file.token,
        "compatible": MEMFD_COMPATIBLE,
    }
    assert file.data == memfd.phys and file.compatible == MEMFD_COMPATIBLE
    columns = (memfd.folio_phys >> np.uint64(12), memfd.folio_flags, memfd.folio_index, memfd.folio_order)
    shown["chunks"] = area.chunks if area else []
    shown["ser_pages"] = area.blocks.tolist() if area else []
    shown["folios"] = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    return shown


def test_everything_preserved_is_explained(image: Path) -> None:
    memory = open_image(image).memory
    assert memory is not None
    handover = Handover.read(memory)
    Luo.read(handover)
    phys, _ = handover.unexplained()
    assert not len(phys)


def test_every_check_of_the_moment_holds(image: Path) -> None:
    facts = beside(image, ".json")
    memory = open_image(image).memory
    assert memory is not None
    handover = Handover.read(memory, scratch=scratch_of(facts))
    report = check(handover)
    assert report.ok, report.violations
    assert report.moment == ("K" if "args" in facts else "J")
    left_out = {id: why for id, why in report.not_checked.items() if "scratch list (" in why}
    assert not left_out
    if facts["config"] != "c01-luo-off":
        assert len(report.checked) == (20 if report.moment == "K" else 19)


@pytest.mark.parametrize("config", ["c1-1x4k", "c3-3sess", "c10-reserve_mem"])
def test_jump_changes_nothing_that_is_preserved(config: str) -> None:
    """The pruned images leave out what KHO does not reach, but for the scratch list, boot_params and
    setup_data.
    """
    handovers = []
    for name in ("before-kexec", "second-kernel-kho_populate"):
        path = RECORDED / config / (name + SUFFIX)
        memory = open_image(path).memory
        assert memory is not None
        handovers.append(Handover.read(memory, scratch=scratch_of(beside(path, ".json"))))
    report = compare(handovers[0], handovers[1])
    assert {violation.id for violation in report.violations} <= {"INV-30"}
    assert {"INV-26", "INV-29", "INV-49"} <= set(report.checked)


def test_chain_of_updates_keeps_the_scratch_list() -> None:
    lists = []
    for number in (1, 2):
        memory = open_image(
            RECORDED / "c9-chain" / f"second-kernel-kho_populate.round{number}{SUFFIX}"
        ).memory
        assert memory is not None
        handover = Handover.read(memory)
        luo = Luo.read(handover)
        assert luo is not None and luo.liveupdate_num == number
        assert handover.metadata is not None and handover.metadata.kexec_count == number
        lists.append(handover.scratch)
    assert lists[0] == lists[1]
    report = check(handover, earlier_scratch=lists[0])
    assert report.ok and "INV-4" in report.checked


def writable(path: Path) -> Buffer:
    """A recording that can be damaged."""
    memory = open_image(path).memory
    assert memory is not None
    buffer = Buffer(memory.ranges[0][1])
    for start, end in memory.populated():  # type: ignore[attr-defined]
        buffer.write(start, memory.read(start, end - start))
    return buffer


@pytest.mark.parametrize(
    ("id", "make"),
    [
        ("INV-14", lambda luo: (luo.phys, b"luo-v6")),
        ("INV-19", lambda luo: (luo.chain.blocks[0].phys + 8, b"\x34")),
        ("INV-15", lambda luo: (luo.phys + 16, b"\1")),
        ("INV-20", lambda luo: (luo.sessions[0].files[0].phys + 56, b"\2")),
        (
            "INV-16",
            lambda luo: (luo.sessions[2].files_phys, luo.sessions[2].files_phys.to_bytes(8, "little")),
        ),
        ("INV-23", lambda luo: (luo.sessions[0].files[0].memfd.phys + 20, b"\1")),
        ("INV-24", lambda luo: (int(luo.sessions[2].files[2].memfd.area.blocks[0]) + 200 * 16 + 8, b"\1")),
        ("INV-25", lambda luo: (luo.sessions[2].files[2].memfd.phys + 32, b"\1")),
        ("INV-14", lambda luo: (luo.flbs_phys, b"\2")),
        ("INV-21", lambda luo: (luo.flbs_phys + 8, b"\x41")),
    ],
)
def test_damaged_recording(id: str, make: Any) -> None:
    buffer = writable(RECORDED / "demo")
    luo = Luo.read(Handover.read(buffer))
    phys, data = make(luo)
    buffer.write(phys, data)
    report = check(Handover.read(buffer))
    assert {violation.id for violation in report.violations} == {id}, report.violations


def test_older_handover_in_the_same_memory() -> None:
    """What the second kernel received stays in its memory; its own, newer one is the one that counts."""
    first = RECORDED / "c9-chain" / f"second-kernel-kho_populate.round1{SUFFIX}"
    second = open_image(RECORDED / "c9-chain" / f"before-kexec.round2{SUFFIX}").memory
    assert second is not None
    buffer = writable(first)
    for start, end in second.populated():  # type: ignore[attr-defined]
        buffer.write(start, second.read(start, end - start))
    handover = Handover.read(buffer)
    assert handover.fdt_phys == 0x89B000
    assert handover.metadata is not None and handover.metadata.kexec_count == 2
    # the setup_data in place is that of the older one: the jump has not happened
    report = check(handover)
    assert report.moment == "J" and report.ok, report.violations
    assert handover.scratch is not None and "earlier" in handover.location.scratch_source
