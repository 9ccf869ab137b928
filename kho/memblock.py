"""The "memblock" blob: regions of the reserve_mem= parameter, an FDT of one page (Linux 7.2, memblock KHO
ABI).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kho.abi import (
    MEMBLOCK_COMPATIBLE,
    PAGE_SIZE,
    PROP_COMPATIBLE,
    PROP_SIZE,
    PROP_START,
    RESERVE_MEM_COMPATIBLE,
)
from kho.errors import FormatError
from kho.fdt import Fdt, Node


@dataclass(frozen=True)
class ReservedRegion:
    """One named region that the next kernel finds again."""

    name: str
    phys: int
    size: int


def unpack(data: bytes) -> list[ReservedRegion]:
    """Regions in blob order; FormatError."""
    root = Fdt.parse(data).root
    if MEMBLOCK_COMPATIBLE not in root.compatible():
        raise FormatError(f'the memblock blob is not compatible with "{MEMBLOCK_COMPATIBLE}"')
    regions = []
    for node in root.children:
        if RESERVE_MEM_COMPATIBLE not in node.compatible():
            raise FormatError(f'the region "{node.name}" is not compatible with "{RESERVE_MEM_COMPATIBLE}"')
        regions.append(ReservedRegion(node.name, node.u64(PROP_START), node.u64(PROP_SIZE)))
    if len({region.name for region in regions}) != len(regions):
        raise FormatError("two regions of the memblock blob have one name")
    return regions


def pack(regions: Sequence[ReservedRegion]) -> bytes:
    """The blob as Linux writes it."""
    root = Node("", {PROP_COMPATIBLE: MEMBLOCK_COMPATIBLE.encode() + b"\0"})
    for region in regions:
        root.children.append(
            Node(
                region.name,
                {
                    PROP_COMPATIBLE: RESERVE_MEM_COMPATIBLE.encode() + b"\0",
                    PROP_START: region.phys.to_bytes(8, "little"),
                    PROP_SIZE: region.size.to_bytes(8, "little"),
                },
            )
        )
    return Fdt.sequential(root).write(PAGE_SIZE)
