"""The device trees that our kernels write, read by dtc, which is built on libfdt; the check of a handover."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from emu.cli import main
from kho.fdt import HEADER, MAGIC, Fdt
from kho.handover import Handover
from tests.kho.test_fdt import dtc
from tests.run.stages import Stage, stage

CMDLINE = "test_kho.max_mem=256K reserve_mem=1M:4K:one reserve_mem=64K:4K:two"


def blobs(found: Stage) -> dict[str, bytes]:
    """Root and sub-trees that are device trees, by name."""
    memory, handover = found.machine.memory, found.handover
    assert isinstance(handover, Handover) and handover.fdt_phys is not None
    out = {}
    places = {"": handover.fdt_phys} | {tree.name: tree.phys for tree in handover.subtrees}
    for name, phys in places.items():
        magic, size = HEADER.unpack_from(memory.read(phys, HEADER.size).tobytes())[:2]
        if magic == MAGIC:
            out[name] = memory.read(phys, size).tobytes()
    return out


@functools.cache
def written(old: str) -> dict[str, bytes]:
    """What a release hands over."""
    jumped = stage("kexec:jump", "kernel:start", old=old, new="new", cmdline=CMDLINE)
    try:
        return blobs(jumped)
    finally:
        jumped.update.machine.close()


@pytest.mark.parametrize("release", ["old", "new"])
def test_dtc_reads_what_our_kernels_write(release: str) -> None:
    found = written(release)
    assert set(found) == {"", "kho_test", "luemu_test", "memblock"}
    wanted = {
        "": 'compatible = "kho-v4";', "kho_test": 'compatible = "kho-test-v1";',
        "memblock": 'compatible = "memblock-v1";', "luemu_test": "compatible = ",
    }  # fmt: skip
    for name, blob in found.items():
        text = dtc(blob, "dtb", "dts")
        assert wanted[name] in text.decode(), f"{name}: {text.decode()}"
        assert Fdt.parse(dtc(text, "dts", "dtb")).root == Fdt.parse(blob).root, name


@pytest.mark.parametrize("damage", [0, 4, 8])
def test_dtc_would_notice(damage: int) -> None:
    """The other way round: of a damaged header dtc says so."""
    blob = bytearray(written("old")["kho_test"])
    blob[damage] ^= 0xFF
    with pytest.raises(AssertionError):
        dtc(bytes(blob), "dtb", "dts")


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("new", "old")])
def test_nothing_is_wrong_with_a_dump(
    old: str, new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dumps = [f"{when}={tmp_path / when}.raw" for when in "JK"]
    words = ["run", "--workload", "kho", "--json", "--memory", "128M", "--cmdline", CMDLINE]
    words += ["--old", old, "--new", new]
    assert main([*words, *(word for dump in dumps for word in ("--dump", dump))]) == 0
    capsys.readouterr()
    for when in "JK":
        assert main(["check", "--json", str(tmp_path / f"{when}.raw")]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["ok"], document["violations"], document["moment"]) == (True, [], when)
