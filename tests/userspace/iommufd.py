"""Orders for the agent that use /dev/iommu and VFIO: each returns the line, with numbers and structures of
Linux's user interface (include/uapi/linux/iommufd.h, vfio.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

SLOT_BASE = 100
"""The descriptor of a slot of the agent is its number from here on."""

DESTROY, IOAS_ALLOC, ALLOW_IOVAS, IOAS_COPY, IOVA_RANGES, IOAS_MAP, IOAS_UNMAP, OPTION = range(0x3B80, 0x3B88)
HWPT_ALLOC = 0x3B89
FIXED, WRITEABLE, READABLE = 1, 2, 4
VFIO_BIND, VFIO_ATTACH, VFIO_DETACH = 0x3B76, 0x3B77, 0x3B78
SHARED, PRIVATE = 1, 2
RW = 3


def ioctl(
    slot: int, number: int, layout: str, *values: int, size: int | None = None, more: bytes = b""
) -> str:
    """An ioctl with a structure whose first member is its size."""
    body = struct.pack("<" + layout, *values)
    data = struct.pack("<I", size if size is not None else 4 + len(body) + len(more)) + body + more
    return f"ioctl {slot} {number:#x} {data.hex()}"


def mmap(slot: int, size: int, address: int, *, prot: int = RW, flags: int = SHARED, offset: int = 0) -> str:
    return f"mmap {slot} {size} {address:#x} {prot} {flags} {offset}"


def ioas_alloc(slot: int) -> str:
    return ioctl(slot, IOAS_ALLOC, "II", 0, 0)


def ioas_map(
    slot: int, ioas: int, address: int, size: int, iova: int = 0, flags: int = FIXED | WRITEABLE | READABLE
) -> str:
    return ioctl(slot, IOAS_MAP, "IIIQQQ", flags, ioas, 0, address, size, iova)


def ioas_unmap(slot: int, ioas: int, iova: int, size: int) -> str:
    return ioctl(slot, IOAS_UNMAP, "IQQ", ioas, iova, size)


def ioas_copy(slot: int, to: int, source: int, size: int, to_iova: int, iova: int, flags: int = 7) -> str:
    return ioctl(slot, IOAS_COPY, "IIIQQQ", flags, to, source, size, to_iova, iova)


def destroy(slot: int, id: int) -> str:
    return ioctl(slot, DESTROY, "I", id)


def hwpt_alloc(slot: int, device: int, ioas: int) -> str:
    return ioctl(slot, HWPT_ALLOC, "IIIIIIIQII", 0, device, ioas, 0, 0, 0, 0, 0, 0, 0)


def bind(vfio: int, iommufd: int) -> str:
    return ioctl(vfio, VFIO_BIND, "IiI", 0, SLOT_BASE + iommufd, 0)


def attach(vfio: int, pt: int) -> str:
    return ioctl(vfio, VFIO_ATTACH, "II", 0, pt)


def detach(vfio: int) -> str:
    return ioctl(vfio, VFIO_DETACH, "I", 0)


def words(answer: str) -> Sequence[int]:
    """The structure in an ioctl's answer, as 32-bit words."""
    data = bytes.fromhex(answer.split()[1])
    return struct.unpack(f"<{len(data) // 4}I", data)


def quads(answer: str, offset: int) -> Sequence[int]:
    """The same from an offset on, as 64-bit words."""
    data = bytes.fromhex(answer.split()[1])[offset:]
    return struct.unpack(f"<{len(data) // 8}Q", data)
