"""ACPI machine language, written by hand: the few terms that a DSDT needs (ACPI 6.5, chapters 20 and 6.4).

Every function returns bytes and takes bytes or plain values; a table is the sum of its terms. It knows the
encoding and nothing of any machine.
"""

from __future__ import annotations

import struct

_SMALL_END_TAG = b"\x79\x00"


def package_length(length: int) -> bytes:
    """PkgLength in front of ``length`` bytes; it counts itself (20.2.4)."""
    if length + 1 < 0x40:
        return bytes((length + 1,))
    for extra in (1, 2, 3):
        total = length + 1 + extra
        if total < 1 << 4 + 8 * extra:
            return bytes((extra << 6 | total & 15,)) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"a package of {length} bytes is too long")


def name(path: str) -> bytes:
    r"""NameString: ``\_SB.PCI0`` or ``_HID``; segments are padded to four characters (20.2.2)."""
    root = b""
    if path.startswith("\\"):
        root, path = b"\\", path[1:]
    segments = [s.ljust(4, "_").encode() for s in path.split(".") if s]
    if any(len(s) != 4 for s in segments):
        raise ValueError(f"{path!r} has a segment longer than four characters")
    if len(segments) > 2:
        return root + b"\x2f" + bytes((len(segments),)) + b"".join(segments)
    return root + (b"\x2e" if len(segments) == 2 else b"") + b"".join(segments)


def integer(value: int) -> bytes:
    """The shortest constant (20.2.3)."""
    if value in (0, 1):
        return bytes((value,))
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit into 64 bits")


def string(text: str) -> bytes:
    """A NUL-terminated ASCII string."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A device identity such as ``PNP0A08`` as a compressed integer (19.3.4)."""
    letters = [ord(c) - 0x40 for c in text[:3]]
    code = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + code.to_bytes(4, "big")


def define(path: str, value: bytes) -> bytes:
    """Name (path, value)."""
    return b"\x08" + name(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) { terms }."""
    return b"\x10" + _packed(name(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) { terms }."""
    return b"\x5b\x82" + _packed(name(path) + b"".join(terms))


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    """Method (path, arguments, NotSerialized) { terms }."""
    return b"\x14" + _packed(name(path) + bytes((arguments,)) + b"".join(terms))


def returns(value: bytes) -> bytes:
    """Return (value)."""
    return b"\xa4" + value


def argument(number: int) -> bytes:
    """Arg0 to Arg6."""
    return bytes((0x68 + number,))


def package(*elements: bytes) -> bytes:
    """Package () { elements }, at most 255 of them."""
    return b"\x12" + _packed(bytes((len(elements),)) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    """Buffer () { data }."""
    return b"\x11" + _packed(integer(len(data)) + data)


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }; the end tag's checksum of 0 means "not computed" (6.4.2.9)."""
    return buffer(b"".join(descriptors) + _SMALL_END_TAG)


def io(first: int, length: int) -> bytes:
    """IO (Decode16, first, first, 1, length) (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, length)


def irq_no_flags(irq: int) -> bytes:
    """IRQNoFlags () {irq}: edge, active high, exclusive (6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << irq)


def memory32_fixed(base: int, length: int, writable: bool) -> bytes:
    """Memory32Fixed (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, 1 if writable else 0, base, length)


_MEMORY, _IO, _BUS = 0, 1, 2
_MIN_AND_MAX_FIXED = 0x0C
_FULL_RANGE_IO = 3
_NOT_CACHED_WRITABLE = 1


def bus_numbers(first: int, last: int) -> bytes:
    """WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode) (6.4.3.5.3)."""
    return _word_window(_BUS, 0, first, last)


def io_window(first: int, last: int) -> bytes:
    """WordIO (ResourceProducer, ..., EntireRange)."""
    return _word_window(_IO, _FULL_RANGE_IO, first, last)


def memory_window(first: int, last: int) -> bytes:
    """DWordMemory (ResourceProducer, ..., NonCacheable, ReadWrite) (6.4.3.5.2)."""
    body = struct.pack(
        "<BBBIIIII", _MEMORY, _MIN_AND_MAX_FIXED, _NOT_CACHED_WRITABLE, 0, first, last, 0, last - first + 1
    )
    return b"\x87" + struct.pack("<H", len(body)) + body


def memory_window_64(first: int, last: int) -> bytes:
    """QWordMemory, the same for addresses above 4 GiB (6.4.3.5.1)."""
    body = struct.pack(
        "<BBBQQQQQ", _MEMORY, _MIN_AND_MAX_FIXED, _NOT_CACHED_WRITABLE, 0, first, last, 0, last - first + 1
    )
    return b"\x8a" + struct.pack("<H", len(body)) + body


def _word_window(kind: int, flags: int, first: int, last: int) -> bytes:
    length = last - first + 1
    body = struct.pack("<BBBHHHHH", kind, _MIN_AND_MAX_FIXED, flags, 0, first, last, 0, length & 0xFFFF)
    return b"\x88" + struct.pack("<H", len(body)) + body


def _packed(body: bytes) -> bytes:
    return package_length(len(body)) + body
