"""The handover of a live machine: as recorded, whatever the file format, by our machine and by QEMU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from emu import saved
from emu.cli import main
from emu.debug.inspect_describe import describe
from emu.initproto import NextKernel, Plan
from emu.machine import Machine
from kho.abi import PAGE_SIZE, RESTORE_MAGIC
from kho.handover import Handover
from kho.image import open_image
from kho.setup_data import ScratchList
from luo.check import check
from luo.state import Luo
from tests.linux import qemu, qemu_dump, updates
from tests.linux.build import LinuxBuild
from tests.linux.updates import DIGEST, SCRATCH, SPEC
from tests.luo.images import RECORDED

pytestmark = pytest.mark.linux

JsonObject = dict[str, Any]
RECORDING = RECORDED / "c1-1x4k"
RECORDED_AT = {"J": "before-kexec", "K": "second-kernel-kho_populate"}
ADDRESSES = {"phys", "fdt_phys", "radix_root", "scratch_phys", "data", "sessions_phys", "flbs_phys"}
"""Fields of the document that are addresses."""
PLACES = {"radix_nodes", "tree_bytes", "found_by"}
"""How many leaves a tree has follows from the addresses in it."""


@dataclass
class Live:
    """The small update, and its handover as decoded from the running machine."""

    documents: dict[str, JsonObject] = field(default_factory=dict)
    properties: dict[str, JsonObject] = field(default_factory=dict)
    """of the root FDT and the blobs, addresses left out"""
    reports: dict[str, JsonObject] = field(default_factory=dict)
    files: dict[tuple[str, str], Path] = field(default_factory=dict)


def structure(handover: Handover) -> JsonObject:
    """Everything in the root FDT, with 8-byte addresses replaced; and the sizes of the blobs."""
    names = {"preserved-memory-map", "preserved-data"}
    nodes = {
        path: {n: "address" if n in names else v.hex() for n, v in node.properties.items()}
        for path, node in handover.fdt.root.walk()
    }
    return {"fdt": nodes, "size": handover.fdt_size, "blobs": {s.name: s.size for s in handover.subtrees}}


Decoded = tuple[JsonObject, JsonObject, JsonObject]
"""The document of inspect, the structure, the report of check."""


def decode(memory: Any, scratch: ScratchList | None, moment: str) -> Decoded:
    handover = Handover.read(memory, scratch=scratch)
    report = check(handover, moment)
    return describe(handover, report), structure(handover), report.to_dict()


@pytest.fixture(scope="session")
def live(linux: LinuxBuild, tmp_path_factory: pytest.TempPathFactory) -> Live:
    """One run, looked into at J and K, and dumped in every format at J, K and F."""
    found = Live()
    folder = tmp_path_factory.mktemp("dumps")
    at: list[tuple[str, str, Path]] = []
    for when in ("J", "K", "F"):
        for suffix in ("raw", "raw.zst", "elf"):
            path = folder / f"{when}-{suffix.replace('.', '-')}.{suffix}"
            found.files[when, suffix] = path
            at.append(("dump", when, path))
        path = folder / f"{when}.luemu"
        found.files[when, "saved"] = path
        at.append(("save", when, path))
    with updates.update(linux, at=at) as u:
        assert u.observer is not None
        examine = u.observer.on_moment

        def moment(m: Machine, when: str, generation: int) -> None:
            if examine is not None:
                examine(m, when, generation)
            if when in ("J", "K"):
                e = u.examined[-1]
                # before the jump only the kernel's own variables know where the list is
                at = e.handover.location.scratch_phys if e.handover is not None else None
                scratch = None if at is None else ScratchList(at, 48)
                parts = decode(m.memory, scratch if when == "J" else None, when)
                found.documents[when], found.properties[when], found.reports[when] = parts

        u.observer.on_moment = moment
        result = u.run()
        assert result.ok, result.reasons
    return found


def placeless(value: Any) -> Any:
    """A document without addresses."""
    if isinstance(value, Mapping):
        return {
            k: placeless(v)
            for k, v in value.items()
            if k not in PLACES and not (k in ADDRESSES and isinstance(v, int | type(None)))
        }
    if isinstance(value, list):
        items = [placeless(v) for v in value]
        return sorted(items, key=lambda i: json.dumps(i, sort_keys=True))
    return value


@pytest.mark.parametrize("moment", ["J", "K"])
def test_it_is_the_recorded_one_but_for_addresses(live: Live, moment: str) -> None:
    path = RECORDING / f"{RECORDED_AT[moment]}.pruned.raw.zst"
    facts = json.loads((RECORDING / f"{RECORDED_AT[moment]}.json").read_text())
    memory = open_image(path).memory
    scratch = ScratchList(int(facts["scratch_list_pa"], 0), 16 * len(facts["scratch"]))
    document, properties, _ = decode(memory, scratch if moment == "J" else None, moment)
    assert properties == live.properties[moment]
    assert placeless(document) == placeless(live.documents[moment])
    assert live.documents[moment]["kho"]["fdt_phys"] % PAGE_SIZE == 0
    assert live.documents[moment]["luo"]["sessions"][0]["files"][0]["sha256"] == DIGEST
    assert facts["expected_sha256"] == {"one/0x1": DIGEST}


SHARED = [1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 19, 20, 21, 23, 24, 25]


@pytest.mark.parametrize("moment", ["J", "K"])
def test_every_check_of_its_moment_passes(live: Live, moment: str) -> None:
    """What memory alone can tell; `luemu run` adds INV-13 and 28 at J, 29 at K, and the comparisons."""
    report = live.reports[moment]
    assert report["violations"] == []
    alone = SHARED + ([31] if moment == "K" else [])
    assert report["checked"] == [f"INV-{n}" for n in sorted(alone)]


# --- dumps -----------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, JsonObject]:
    status = main([str(w) for w in words])
    return status, json.loads(capsys.readouterr().out)


def without(document: JsonObject) -> JsonObject:
    """What no image says of itself, left out: its path, and how the FDT was found."""
    return {k: v for k, v in document.items() if k != "image"} | {
        "kho": {k: v for k, v in document["kho"].items() if k != "found_by"}
    }


@pytest.mark.parametrize("suffix", ["raw", "raw.zst", "elf", "saved"])
@pytest.mark.parametrize("moment", ["J", "K"])
def test_a_dump_decodes_like_the_live_machine(
    live: Live, moment: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = live.files[moment, suffix]
    expected = live.documents[moment]
    status, document = command(capsys, "inspect", "--json", path)
    assert status == 0
    assert without(document) == without(expected)
    status, report = command(capsys, "check", "--json", path)
    # what the live decoding of this test did not know: the kexec image; the old kernel's list and the digests
    more = {"J": {"INV-13", "INV-28"}, "K": {"INV-26", "INV-29"}}[moment]
    assert (status, report["moment"], report["violations"]) == (0, moment, [])
    assert set(report["checked"]) == set(live.reports[moment]["checked"]) | more


@pytest.mark.parametrize("suffix", ["raw", "raw.zst", "elf", "saved"])
def test_a_dump_at_f(live: Live, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = command(capsys, "check", "--json", live.files["F", suffix])
    assert status == 0 and report["moment"] == "F" and report["violations"] == []
    assert {"INV-6", "INV-14", "INV-19", "INV-26", "INV-35"} <= set(report["checked"])


def test_a_struct_page_in_a_dump_loses_its_magic(
    live: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The running kernel's struct pages are where the .json says."""
    image = tmp_path / "F-raw.raw"
    facts = live.files["F", "raw"].with_name("F-raw.json").read_text()
    image.with_suffix(".json").write_text(facts)
    places = json.loads(facts)["struct_pages"]
    lost = live.documents["K"]["preserved"][3]["phys"]
    frame = lost // PAGE_SIZE
    array, first = next((a, f) for a, f, count in places["arrays"] if f <= frame < f + count)
    data = bytearray(live.files["F", "raw"].read_bytes())
    at = array + (frame - first) * places["size"] + places["private_at"]
    assert int.from_bytes(data[at : at + 8], "little") == RESTORE_MAGIC << 32
    data[at : at + 8] = bytes(8)
    image.write_bytes(data)
    status, report = command(capsys, "check", "--json", image)
    (violation,) = report["violations"]
    assert (status, violation["id"], violation["phys"]) == (1, "INV-35", lost)


def test_what_is_beside_a_dump(live: Live) -> None:
    for (moment, suffix), path in live.files.items():
        beside = f"{path.name}.json" if suffix == "saved" else f"{path.name.split('.')[0]}.json"
        facts = json.loads((path.parent / beside).read_text())
        assert facts["moment"] == moment and facts["expected_sha256"] == {"one/0x1": DIGEST}
        assert int(facts["kho_fdt_pa"], 0) == live.documents["J"]["kho"]["fdt_phys"]
        areas = [{"phys": int(a, 0), "size": int(s, 0)} for a, s in facts["scratch"]]
        assert areas == live.documents["J"]["kho"]["scratch"]


def test_the_formats_agree_byte_for_byte(live: Live) -> None:
    for moment in ("J", "K"):
        raw = open_image(live.files[moment, "raw"]).memory
        assert raw is not None
        others: dict[str, Any] = {s: open_image(live.files[moment, s]).memory for s in ("raw.zst", "elf")}
        others["saved"] = saved.SavedMemory(saved.read(live.files[moment, "saved"]))
        for suffix, other in others.items():
            for start in range(1 << 20, 128 << 20, 1 << 20):
                same = raw.read(start, 1 << 20).tobytes() == other.read(start, 1 << 20).tobytes()
                assert same, (moment, suffix, hex(start))


# --- QEMU's own formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["elf", "raw"])
def test_qemu_dumps_are_decoded(
    linux: LinuxBuild, live: Live, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Linux in QEMU, stopped by its debugger at the entry of machine_kexec; the dump is QEMU's."""
    cmdline = f"{qemu.CMDLINE} nokaslr {SCRATCH}"
    plan = Plan(1, [["lu", "s1", *SPEC.split()]], [], [NextKernel(qemu.NEXT_KERNEL, cmdline)])
    image = tmp_path / f"dump.{format}"
    qemu_dump.dump_at(linux, plan, cmdline, "machine_kexec", image, tmp_path)
    status, document = command(capsys, "inspect", "--json", "--moment", "J", image)
    assert status == 0
    assert document["luo"]["sessions"][0]["files"][0]["sha256"] == DIGEST
    assert document["unexplained"] == [] and document["violations"] == []
    # QEMU's machine has other devices and so other addresses, but the same handover
    ours = live.documents["J"]
    theirs = placeless(document["luo"])
    assert theirs == placeless(ours["luo"])
    assert document["preserved_summary"] == ours["preserved_summary"]
    assert document["kexec_metadata"] == ours["kexec_metadata"]
    status, report = command(capsys, "check", "--json", "--moment", "J", image)
    assert status == 0 and {"INV-8", "INV-12", "INV-24"} <= set(report["checked"])
    memory = open_image(image).memory
    assert memory is not None
    assert Luo.read(Handover.read(memory)) is not None
