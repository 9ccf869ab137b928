"""What the tests of handing over share: a handover as the host sees it, and the next kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kho import Handover
from kho.abi import RADIX, RESTORE_MAGIC
from kho.fdt import Fdt, Node
from kho.setup_data import ScratchArea
from kho.vmalloc import Descriptor
from tests.guest.kho_host import MIB, PAGE, Kernel, Ram

EINVAL, ENOENT, ENOMEM, EEXIST, E2BIG, EBUSY, ENOSPC, EOPNOTSUPP = 22, 2, 12, 17, 7, 16, 28, 95
NOINIT, KERN, SCRATCH = 0x10, 0x20, 0x40
RAM_SIZE = 64 * MIB
OLD_PAGES = (2 * MIB, 40 * MIB)
NEW_PAGES = (40 * MIB, 50 * MIB)

Populate = tuple[int, int, int, int]


def decode(ram: Ram, handed: Populate) -> Handover:
    areas = ram.words(handed[2], handed[3] // 8).reshape(-1, 2).tolist()
    return Handover.read(ram, handed[0], [ScratchArea(int(a), int(s)) for a, s in areas], search=False)


def blocks_of(ram: Ram, handed: Populate) -> set[tuple[int, int]]:
    tree = decode(ram, handed).tree
    return set(zip(tree.phys.tolist(), tree.order.tolist(), strict=True))


def update(
    library: Path, ram: Ram, handed: Populate, reserve_mem: list[str] | None = None, kho: str = "on"
) -> Kernel:
    """The next kernel, booted with what was handed over."""
    kernel = Kernel(library, ram, NEW_PAGES)
    kernel.boot(kho=kho, populate=handed, reserve_mem=reserve_mem or [])
    return kernel


def keys_of(ram: Ram, node: int, level: int = RADIX.depth - 1, prefix: int = 0) -> set[int]:
    if not level:
        bits = np.flatnonzero(np.unpackbits(ram.read(node, PAGE), bitorder="little"))
        return {prefix << RADIX.leaf_bits | int(bit) for bit in bits}
    found: set[int] = set()
    for index, word in enumerate(ram.words(node).tolist()):
        if word:
            found |= keys_of(ram, word, level - 1, prefix << RADIX.table_bits | index)
    return found


def check_adopted(kernel: Kernel, model: set[tuple[int, int]]) -> None:
    """Every block is reserved without being initialised, and stamped; no other page of RAM is stamped."""
    noinit = [(start, end) for start, end, flags in kernel.regions(reserved=True) if flags & NOINIT]
    covered = 0
    for start, end in noinit:
        covered += end - start
    assert covered == sum(PAGE << order for _, order in model)
    for phys, order in model:
        assert any(start <= phys and phys + (PAGE << order) <= end for start, end in noinit)
    private = kernel.private_words()
    stamped = {(int(pfn) * PAGE, int(private[pfn])) for pfn in np.flatnonzero(private)}
    assert stamped == {(phys, RESTORE_MAGIC << 32 | order) for phys, order in model}


def retrieve(kernel: Kernel, name: bytes) -> tuple[int, int, int]:
    phys, size = ctypes.c_uint64(), ctypes.c_uint64()
    result = kernel.lib.kho_retrieve_subtree(name, ctypes.byref(phys), ctypes.byref(size))
    return result, phys.value, size.value


def preserve_vmalloc(kernel: Kernel, area: int) -> tuple[int, Descriptor, ctypes.Array[ctypes.c_char]]:
    out = ctypes.create_string_buffer(16)
    result = kernel.lib.kho_preserve_vmalloc(area, out)
    return result, Descriptor.unpack(out.raw), out


def cold(library: Path, ram: Ram, handed: Populate) -> Kernel:
    kernel = update(library, ram, handed)
    assert not kernel.lib.is_kho_boot(), kernel.log
    assert retrieve(kernel, b"kexec-metadata")[0] == -ENOENT
    return kernel


def change_root(ram: Ram, fdt: int, change: Callable[[Node], object]) -> None:
    tree = Fdt.parse(ram.read(fdt, PAGE).tobytes())
    change(tree.root)
    ram.write(fdt, tree.write(PAGE).ljust(PAGE, b"\0"))


def tree_node(ram: Ram, root: int, depth: int) -> int:
    for _ in range(depth):
        root = int(ram.words(root)[ram.words(root).nonzero()[0][0]])
    return root
