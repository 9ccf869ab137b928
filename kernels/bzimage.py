"""A bzImage from a kernel's ELF file: the boot protocol's header and the image as it lies in memory.

Source: the Linux x86 boot protocol, version 2.15 ("The Real-Mode Kernel Header"). The image has no real-mode
part: boot loaders use the 32-bit entry at its first byte or the 64-bit entry at offset 0x200, as kexec does.

Standard library only, because it runs inside pip's build environment.
"""

from __future__ import annotations

import struct

SETUP_SECTORS = 4  # what "0" means too; room for the header and the version string
PROTOCOL = 0x020F
LOADED_HIGH = 1
KERNEL_64, ABOVE_4G = 1, 2
ALIGNMENT = 1 << 21
CMDLINE_MAX = 2047
INITRD_MAX = 0x7FFFFFFF
IMAGE_MAX = 1 << 28
_VERSION_AT = 0x400  # behind the header, in the setup sectors
_IMAGE_VERSION = slice(0x1C0, 0x200)  # where arch/head.S puts the version


class BzImageError(Exception):
    """The ELF file is not one that can be made into a bzImage."""


def flatten(elf: bytes) -> tuple[int, bytes, int]:
    """Physical address, contents and size in memory of what an ELF-64 file loads, as one stretch.

    Raises BzImageError.
    """
    if elf[:6] != b"\x7fELF\x02\x01" or len(elf) < 64:
        raise BzImageError("not a 64-bit little-endian ELF file")
    (phoff,) = struct.unpack_from("<Q", elf, 32)
    phentsize, phnum = struct.unpack_from("<HH", elf, 54)
    if phentsize < 56 or phoff + phentsize * phnum > len(elf):
        raise BzImageError("its program headers are outside the file")
    parts = []
    total = 0
    for i in range(phnum):
        kind, _, offset, _, phys, size, memory = struct.unpack_from("<IIQQQQQ", elf, phoff + i * phentsize)
        if kind == 1 and memory:
            total += size
            if total > len(elf):
                raise BzImageError("its segments are larger than the file")
            parts.append((phys, elf[offset : offset + size], memory))
    if not parts:
        raise BzImageError("the ELF file loads nothing")
    parts.sort()
    start = parts[0][0]
    image = bytearray()
    end = start
    for phys, data, memory in parts:
        if phys < end:
            raise BzImageError(f"segments overlap at {phys:#x}")
        if phys + memory - start > IMAGE_MAX:
            raise BzImageError(f"the segment at {phys:#x} ends too far behind the first, at {start:#x}")
        if data:
            image = image.ljust(phys - start, b"\0") + data
        end = phys + memory
    return start, bytes(image), end - start


def bzimage(elf: bytes) -> bytes:
    """The bzImage of a kernel. Raises BzImageError."""
    start, image, size = flatten(elf)
    if start % ALIGNMENT:
        raise BzImageError(f"linked to be loaded at {start:#x}, which is no multiple of {ALIGNMENT:#x}")
    image = image.ljust(-(-len(image) // 16) * 16, b"\0")
    setup = bytearray((SETUP_SECTORS + 1) * 512)

    def put(at: int, form: str, *values: int) -> None:
        struct.pack_into("<" + form, setup, at, *values)

    put(0x1F1, "B", SETUP_SECTORS)
    put(0x1F4, "I", len(image) // 16)
    put(0x1FA, "H", 0xFFFF)  # video mode: normal
    put(0x1FE, "H", 0xAA55)
    put(0x200, "BB", 0xEB, 0x6A)  # a jump over the header; its target tells where the header ends (0x26C)
    setup[0x202:0x206] = b"HdrS"
    put(0x206, "H", PROTOCOL)
    put(0x20E, "H", _VERSION_AT - 0x200)
    put(0x211, "B", LOADED_HIGH)
    put(0x214, "I", 0x100000)
    put(0x22C, "I", INITRD_MAX)
    put(0x230, "IBB", ALIGNMENT, 1, ALIGNMENT.bit_length() - 1)
    put(0x236, "H", KERNEL_64 | ABOVE_4G)
    put(0x238, "I", CMDLINE_MAX)
    put(0x258, "Q", start)
    put(0x260, "I", -(-size // 4096) * 4096)
    text = image[_IMAGE_VERSION].partition(b"\0")[0] + b" (luemu)\0"
    setup[_VERSION_AT : _VERSION_AT + len(text)] = text
    return bytes(setup) + image
