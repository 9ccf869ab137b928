"""The "kho_test" blob of Linux's own self-test (CONFIG_TEST_KEXEC_HANDOVER): folios of random order and a
checksum.

The blob is an FDT; the folios are listed in a preserved vmalloc area of 64-bit words, address | order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kho.abi import (
    NODE_TEST_DATA,
    PAGE_SIZE,
    PROP_COMPATIBLE,
    PROP_TEST_CSUM,
    PROP_TEST_FOLIOS,
    PROP_TEST_MAGIC,
    PROP_TEST_NR,
    TEST_COMPATIBLE,
    TEST_MAGIC,
    VMALLOC,
)
from kho.errors import FormatError
from kho.fdt import Fdt, Node
from kho.memory import Reader, Words, runs
from kho.radix import Orders
from kho.vmalloc import Area, Descriptor, read_area

CSUM_MODULUS = (1 << 32) - 1


@dataclass
class KhoTest:
    """Decoded self-test data. `phys` and `order` are the folios in the order of the list."""

    nr_folios: int
    csum: int
    descriptor: Descriptor
    area: Area | None = None
    phys: Words = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    order: Orders = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    complete: bool = False
    """Every folio is preserved and belongs to nobody else."""

    @property
    def bytes(self) -> int:
        """Bytes of all folios."""
        return int((np.uint64(PAGE_SIZE) << self.order.astype(np.uint64)).sum())

    def read_folios(self, reader: Reader) -> list[tuple[str, int | None]]:
        """Read the list; returns what is wrong with it as (message, phys)."""
        size = self.nr_folios * 8
        self.area = read_area(reader, self.descriptor, -(-size // PAGE_SIZE))
        if self.area.problems:
            return self.area.problems
        words = np.ascontiguousarray(self.area.read(reader, size)).view("<u8")
        self.phys = words & ~np.uint64(PAGE_SIZE - 1)
        order = words & np.uint64(PAGE_SIZE - 1)
        bad = np.flatnonzero(order > 51)
        self.order = np.minimum(order, 52).astype(np.uint8)
        return [
            (f"folio {index} has an order of {int(order[index])}", int(words[index])) for index in bad[:16]
        ]

    def csum_ok(self, reader: Reader) -> bool | None:
        """Whether the contents have the checksum; None when they are not complete.

        It is the 32-bit ones' complement sum of all folios, so equality is modulo 2^32 - 1.
        """
        if not self.complete:
            return None
        total = 0
        for start, size in runs(self.phys, np.uint64(PAGE_SIZE) << self.order.astype(np.uint64)):
            total += int(np.ascontiguousarray(reader.read(start, size)).view("<u4").sum(dtype=np.uint64))
        return (total - self.csum) % CSUM_MODULUS == 0


def unpack(data: bytes) -> KhoTest:
    """From the bytes of the blob; FormatError."""
    root = Fdt.parse(data).root
    if TEST_COMPATIBLE not in root.compatible():
        raise FormatError(f'the kho_test blob is not compatible with "{TEST_COMPATIBLE}"')
    if root.u32(PROP_TEST_MAGIC) != TEST_MAGIC:
        raise FormatError(f"the kho_test blob has the magic {root.u32(PROP_TEST_MAGIC):#x}")
    node = root.child(NODE_TEST_DATA)
    if node is None:
        raise FormatError(f'the kho_test blob has no node "{NODE_TEST_DATA}"')
    info = node.properties.get(PROP_TEST_FOLIOS, b"")
    if len(info) != VMALLOC.size:
        raise FormatError(f"the list of kho_test folios has a descriptor of {len(info)} bytes")
    return KhoTest(node.u32(PROP_TEST_NR), node.u32(PROP_TEST_CSUM), Descriptor.unpack(info))


def pack(test: KhoTest) -> bytes:
    """The blob."""
    data = Node(
        NODE_TEST_DATA,
        {
            PROP_TEST_NR: test.nr_folios.to_bytes(4, "little"),
            PROP_TEST_FOLIOS: test.descriptor.pack(),
            PROP_TEST_CSUM: test.csum.to_bytes(4, "little"),
        },
    )
    root = Node(
        "",
        {
            PROP_COMPATIBLE: TEST_COMPATIBLE.encode() + b"\0",
            PROP_TEST_MAGIC: TEST_MAGIC.to_bytes(4, "little"),
        },
        [data],
    )
    return Fdt.sequential(root).write(PAGE_SIZE)
