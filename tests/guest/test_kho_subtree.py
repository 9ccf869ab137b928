"""Sub-trees and kexec-metadata: what one kernel registers and the next one finds."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from kho.fdt import Fdt, Node
from tests.guest.kho_cases import EEXIST, EINVAL, ENOENT, ENOMEM, RAM_SIZE, decode, retrieve, update
from tests.guest.kho_host import MIB, PAGE, Kernel, Ram


def root_children(ram: Ram, fdt: int) -> dict[str, tuple[int, int]]:
    root = Fdt.parse(ram.read(fdt, PAGE).tobytes()).root
    return {n.name: (n.u64("preserved-data"), n.u64("blob-size")) for n in root.children}


def test_subtrees_come_and_go(old: Kernel, ram: Ram) -> None:
    fdt = old.lib.host_root_fdt()
    assert list(root_children(ram, fdt)) == ["kexec-metadata"]
    blob = old.lib.kho_alloc_preserve(100)
    assert old.lib.kho_add_subtree(b"one", blob, 100) == 0
    assert old.lib.kho_add_subtree(b"one", blob + PAGE, 5) == -EEXIST
    assert old.lib.kho_add_subtree(b"two", blob + 64, 5) == 0
    assert list(root_children(ram, fdt)) == ["two", "one", "kexec-metadata"]
    assert root_children(ram, fdt)["one"] == (old.phys(blob), 100)
    old.lib.kho_remove_subtree(blob + 8)
    assert len(root_children(ram, fdt)) == 3, "nobody has this address"
    old.lib.kho_remove_subtree(blob)
    assert list(root_children(ram, fdt)) == ["two", "kexec-metadata"]


def test_a_full_fdt_refuses_and_stays_as_it_was(old: Kernel, ram: Ram) -> None:
    fdt = old.lib.host_root_fdt()
    blob = old.lib.kho_alloc_preserve(1)
    count = 0
    while (result := old.lib.kho_add_subtree(b"node%04d" % count, blob, count)) == 0:
        count += 1
        before = ram.read(fdt, PAGE).copy()
    assert result == -ENOMEM
    assert (ram.read(fdt, PAGE) == before).all(), "a node that did not fit changed the FDT"
    assert count == (PAGE - 233) // (48 + 12)
    assert old.lib.kho_add_subtree(b"node0000", blob, 1) == -EEXIST
    old.lib.kho_remove_subtree(blob)
    assert old.lib.kho_add_subtree(b"again", blob, 1) == 0


def test_a_subtree_can_be_retrieved_again_and_again(old: Kernel, library: Path, ram: Ram) -> None:
    blob = old.lib.kho_alloc_preserve(5000)
    assert old.lib.kho_add_subtree(b"mine", blob, 5000) == 0
    handed = old.handover()
    phys = old.phys(blob)
    old.close()
    with update(library, ram, handed) as kernel:
        assert retrieve(kernel, b"mine") == (0, phys, 5000)
        assert retrieve(kernel, b"mine") == (0, phys, 5000)
        assert retrieve(kernel, b"other")[0] == -ENOENT
        assert kernel.lib.kho_retrieve_subtree(b"mine", 0, 0) == -EINVAL
        out = ctypes.c_uint64()
        assert kernel.lib.kho_retrieve_subtree(b"mine", ctypes.byref(out), 0) == 0
        assert out.value == phys


def test_a_cold_kernel_has_no_subtrees(old: Kernel) -> None:
    assert retrieve(old, b"kexec-metadata")[0] == -ENOENT
    assert not old.lib.is_kho_boot()


@pytest.mark.parametrize(
    "node",
    [
        {"blob-size": bytes(8)},
        {"preserved-data": bytes(7), "blob-size": bytes(8)},
        {"preserved-data": (2 * MIB).to_bytes(8, "little")},
        {"preserved-data": (2 * MIB).to_bytes(8, "little"), "blob-size": bytes(4)},
        {"preserved-data": (2 * MIB).to_bytes(8, "little"), "blob-size": bytes(8)},
        {"preserved-data": (1 << 40).to_bytes(8, "little"), "blob-size": b"\x01" + bytes(7)},
        {
            "preserved-data": (RAM_SIZE - PAGE).to_bytes(8, "little"),
            "blob-size": (8192).to_bytes(8, "little"),
        },
        {"preserved-data": b"\xff" * 8, "blob-size": b"\xff" * 8},
        {"preserved-data": (0x9F000).to_bytes(8, "little"), "blob-size": b"\x01" + bytes(7)},
    ],
    ids=[
        "no address",
        "short address",
        "no size",
        "short size",
        "empty",
        "above RAM",
        "over the end",
        "wraps",
        "hole",
    ],
)
def test_a_broken_subtree_is_refused(old: Kernel, library: Path, ram: Ram, node: dict[str, bytes]) -> None:
    handed = old.handover()
    old.close()
    fdt = Fdt.parse(ram.read(handed[0], PAGE).tobytes())
    fdt.root.children.append(Node("broken", node))
    ram.write(handed[0], fdt.write(PAGE))
    with update(library, ram, handed) as kernel:
        assert retrieve(kernel, b"broken")[0] == -EINVAL
        assert retrieve(kernel, b"kexec-metadata")[0] == 0


@pytest.mark.parametrize(
    ("blob", "size", "line"),
    [
        (
            (2).to_bytes(4, "little") + bytes(69),
            73,
            "KHO: kexec-metadata version 2 not supported (expected 1)",
        ),
        ((1).to_bytes(4, "little") + bytes(69), 8, "KHO: kexec-metadata blob too small for v1 (8 < 73)"),
        ((1).to_bytes(4, "little") + bytes(69), 3, "KHO: kexec-metadata blob too small (3)"),
        ((1).to_bytes(4, "little") + b"x" * 65 + b"\x07\0\0\0", 73, f"KHO: exec from: {'x' * 64} (count 7)"),
        (
            (1).to_bytes(4, "little") + b"7.2.13".ljust(65, b"\0") + b"\x07\0\0\0",
            80,
            "KHO: exec from: 7.2.13 (count 7)",
        ),
    ],
    ids=["version", "short", "tiny", "endless name", "longer than needed"],
)
def test_foreign_metadata(old: Kernel, library: Path, ram: Ram, blob: bytes, size: int, line: str) -> None:
    handed = old.handover()
    old.close()
    fdt = Fdt.parse(ram.read(handed[0], PAGE).tobytes())
    node = fdt.root.child("kexec-metadata")
    assert node is not None
    ram.write(node.u64("preserved-data"), blob)
    node.properties["blob-size"] = size.to_bytes(8, "little")
    ram.write(handed[0], fdt.write(PAGE))
    with update(library, ram, handed) as kernel:
        assert line in kernel.log.splitlines()
        count = decode(ram, kernel.handover()).metadata
        assert count is not None and count.kexec_count == (8 if "count 7" in line else 1)
