"""The "luemu_test" blob of the project's own kernels: what their test hands over besides `kho.khotest`.

The blob is an FDT (kho/guest/test_areas.c): a node for each vmalloc area, and where reserve_mem regions are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kho.abi import PAGE_SIZE, VMALLOC
from kho.errors import FormatError
from kho.fdt import Fdt
from kho.memory import Reader
from kho.vmalloc import Area, Descriptor, read_area

SUBTREE = "luemu_test"
COMPATIBLE = "luemu-test-v1"
PROP_INFO, PROP_SIZE = "info", "size"
AREA_PREFIX = "vmalloc@"
AREAS_MAX = 64


@dataclass
class OwnArea:
    """A vmalloc area: ``size`` in bytes."""

    name: str
    size: int
    descriptor: Descriptor
    area: Area | None = None


@dataclass
class LuemuTest:
    """Decoded."""

    areas: list[OwnArea] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of all areas."""
        return sum(a.size for a in self.areas)

    def read_areas(self, reader: Reader) -> list[tuple[str, int | None]]:
        """Read the lists of their pages; returns what is wrong with them as (message, phys)."""
        problems: list[tuple[str, int | None]] = []
        for a in self.areas:
            a.area = read_area(reader, a.descriptor, -(-a.size // PAGE_SIZE))
            problems += a.area.problems
        return problems


def unpack(data: bytes) -> LuemuTest:
    """From the bytes of the blob; FormatError."""
    root = Fdt.parse(data).root
    if COMPATIBLE not in root.compatible():
        raise FormatError(f'the luemu_test blob is not compatible with "{COMPATIBLE}"')
    areas: list[OwnArea] = []
    for node in root.children:
        if node.name.startswith(AREA_PREFIX):
            info = node.properties.get(PROP_INFO, b"")
            if len(info) != VMALLOC.size or len(areas) == AREAS_MAX:
                raise FormatError(f"{node.name} of luemu_test has a descriptor of {len(info)} bytes")
            areas.append(OwnArea(node.name, node.u64(PROP_SIZE), Descriptor.unpack(info)))
    return LuemuTest(areas)
