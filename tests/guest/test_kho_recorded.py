"""Our kernel's KHO code on memory that a real Linux 7.2 left: every block is adopted, every blob read."""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kho import Handover
from kho.abi import RESTORE_MAGIC, VMALLOC
from kho.setup_data import ScratchArea
from kho.vmalloc import Descriptor
from tests.guest.kho_cases import retrieve
from tests.guest.kho_host import MIB, PAGE, Kernel, Ram

RECORDED = Path(__file__).parent.parent / "data" / "handovers"
NAMES = sorted(path.parent.name for path in RECORDED.glob("*/second-kernel-kho_populate.json"))
FREE_PAGES = (40 * MIB, 60 * MIB)  # where nothing of the recordings is


@dataclass
class Recording:
    ram: Ram
    about: dict[str, Any]
    seen: Handover

    @property
    def populate(self) -> tuple[int, int, int, int]:
        a = self.about["args"]
        return int(a["fdt_phys"], 0), a["fdt_len"], int(a["scratch_phys"], 0), a["scratch_len"]


def load(name: str) -> Recording:
    about = json.loads((RECORDED / name / "second-kernel-kho_populate.json").read_text())
    packed = (RECORDED / name / "second-kernel-kho_populate.pruned.raw.zst").read_bytes()
    memory = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    ranges = [(e["addr"], e["addr"] + e["size"] & -PAGE) for e in about["e820"] if e["type"] == 1]
    ram = Ram(-(-max(end for _, end in ranges) // MIB) * MIB, ranges)
    ram.write(0, memory[: ram.size])
    areas = [ScratchArea(int(a, 0), int(s, 0)) for a, s in about["scratch"]]
    seen = Handover.read(ram, int(about["args"]["fdt_phys"], 0), areas, search=False)
    return Recording(ram, about, seen)


def test_there_are_recordings() -> None:
    assert len(NAMES) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_every_block_of_linux_is_adopted(library: Path, name: str) -> None:
    recording = load(name)
    with recording.ram as ram, Kernel(library, ram, FREE_PAGES) as kernel:
        reserve_mem = ["1M:4096:golden"] if recording.seen.reserve_mem else []
        kernel.boot(populate=recording.populate, reserve_mem=reserve_mem, scratch="")
        metadata = recording.seen.metadata
        assert metadata is not None
        assert "KHO: found kexec handover data.\n" in kernel.log
        assert f"KHO: exec from: {metadata.previous_release} (count {metadata.kexec_count})\n" in kernel.log
        private = kernel.private_words()
        tree = recording.seen.tree
        expected = {
            phys // PAGE: RESTORE_MAGIC << 32 | order
            for phys, order in zip(tree.phys.tolist(), tree.order.tolist(), strict=True)
        }
        assert {int(pfn): int(private[pfn]) for pfn in private.nonzero()[0]} == expected
        for subtree in recording.seen.subtrees:
            assert retrieve(kernel, subtree.name.encode()) == (0, subtree.phys, subtree.size)
        for region in recording.seen.reserve_mem:
            assert f"memblock: Revived memory reservation '{region.name}' from KHO\n" in kernel.log
            raw = ctypes.string_at(kernel.lib.reserve_mem_get(0), 16)
            assert raw == region.phys.to_bytes(8, "little") + region.size.to_bytes(8, "little")
        before = [
            phys for phys, order in zip(tree.phys.tolist(), tree.order.tolist(), strict=True) if not order
        ]
        for phys in before:
            content = ram.read(phys, PAGE).copy()
            assert kernel.lib.host_restore_folio(phys) == 0
            assert (ram.read(phys, PAGE) == content).all()
        assert kernel.warnings == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("c1-", "c3-"))])
def test_vmalloc_areas_of_linux_are_restored(library: Path, name: str) -> None:
    """The list of a memfd's folios is one; where it is, the host's decoder says."""
    recording = load(name)
    found = [
        Descriptor.unpack(data)
        for phys in recording.seen.tree.phys.tolist()
        if (data := _descriptor(recording.ram, int(phys), recording.seen)) is not None
    ]
    assert found
    with recording.ram as ram, Kernel(library, ram, FREE_PAGES) as kernel:
        kernel.boot(populate=recording.populate, scratch="")
        for descriptor in found:
            area = kernel.lib.kho_restore_vmalloc(descriptor.pack())
            assert area, f"{descriptor}: {kernel.log}"


def _descriptor(ram: Ram, phys: int, seen: Handover) -> bytes | None:
    """A page that is a memfd's record: its last field is a struct kho_vmalloc of a preserved chunk."""
    record = ram.read(phys, 64).tobytes()
    for at in range(16, 48, 8):
        first, pages, flags, order = VMALLOC.unpack(record[at : at + 16])
        if flags == 1 and order == 0 and 0 < pages < 1000 and first and seen.preserved.has(first):
            return record[at : at + 16]
    return None
