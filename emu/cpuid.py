"""What the CPU says it is: one versioned table, part of the machine description.

An AMD EPYC (it has SVM, for guests that run guests), without what the engine lacks or gets wrong (AVX
and all that builds on it, BMI), would take from the host (RDRAND, RDSEED) or does not model (machine checks,
MONITOR/MWAIT). Sources: AMD64 Architecture Programmer's Manual vol. 3 appendix E, and the values
of a first-generation EPYC.

`VERSION` goes into saved machines: a machine is only continued on the table it was started with.
"""

from __future__ import annotations

VERSION = 1
ANY = 0xFFFFFFFF
"""Subleaf of a row that answers every subleaf."""

Row = tuple[int, int, int, int, int, int]
"""(leaf, subleaf, eax, ebx, ecx, edx)"""


def _bits(*numbers: int) -> int:
    return sum(1 << n for n in numbers)


_MAX_BASIC = 0xD
_MAX_EXTENDED = 0x8000001E
_PHYSICAL_BITS = 46
_VIRTUAL_BITS = 48

LEAF1_ECX = _bits(0, 1, 9, 13, 19, 20, 22, 23, 25) | _bits(21, 24, 31)
# SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES; x2APIC TSC-deadline hypervisor
LEAF1_EDX = 0x078BFBFD & ~_bits(7, 14)  # no MCE, MCA
LEAF7_EBX = _bits(7, 19, 20, 23)  # SMEP ADX SMAP CLFLUSHOPT (the engine computes BMI flags wrongly)
EXT1_ECX = _bits(0, 2, 4, 5, 6)  # LAHF SVM CR8 ABM SSE4A
EXT1_EDX = 0x2DD3FBFD & ~_bits(7, 14)


def _text(name: str, leaf: int) -> list[Row]:
    raw = name.encode().ljust(48, b"\0")
    words = [int.from_bytes(raw[i : i + 4], "little") for i in range(0, 48, 4)]
    return [(leaf + i, ANY, *words[4 * i : 4 * i + 4]) for i in range(3)]  # type: ignore[misc]


def table(apic_id: int = 0) -> list[Row]:
    """CPUID rows of the CPU with this APIC id. Leaves not in it are all zero.

    Two bits follow the CPU's state and are set by the core: OSXSAVE, never the rest.
    """
    vendor = (0x68747541, 0x444D4163, 0x69746E65)  # ebx, ecx, edx: "AuthenticAMD"
    return [
        (0, ANY, _MAX_BASIC, *vendor),
        (1, ANY, 0x800F12, apic_id << 24 | 1 << 16 | 8 << 8, LEAF1_ECX, LEAF1_EDX),
        (5, ANY, 0, 0, 0, 0),
        (6, ANY, 1 << 2, 0, 0, 0),  # ARAT: the APIC timer never stops
        (7, 0, 0, LEAF7_EBX, 0, 0),
        (0x80000000, ANY, _MAX_EXTENDED, *vendor),
        (0x80000001, ANY, 0x800F12, 0, EXT1_ECX, EXT1_EDX),
        *_text("luemu virtual processor (EPYC)", 0x80000002),
        (0x80000005, ANY, 0x01FF01FF, 0x01FF01FF, 0x20080140, 0x40040140),
        (0x80000006, ANY, 0, 0x42004200, 0x02006140, 0),
        (0x80000007, ANY, 0, 0, 0, 1 << 8),  # invariant TSC
        (0x80000008, ANY, _VIRTUAL_BITS << 8 | _PHYSICAL_BITS, 0, 0, 0),
        (0x8000000A, ANY, 1, 16, 0, 1),  # SVM revision 1, 16 ASIDs, nested paging
        (0x8000001D, 0, 0x121, 0x01C0003F, 0x3F, 1),
        (0x8000001D, 1, 0x122, 0x00C0003F, 0xFF, 1),
        (0x8000001D, 2, 0x143, 0x01C0003F, 0x3FF, 0),
        (0x8000001E, ANY, apic_id, apic_id, 0, 0),
    ]


FEATURE_MASKS = {0: LEAF1_EDX, 1: LEAF1_ECX, 2: LEAF7_EBX, 3: 0, 4: 0, 6: EXT1_EDX, 7: EXT1_ECX}
"""Word in the engine's own feature array -> what may stay set there, so that an instruction that
the table does not offer faults: 1.EDX, 1.ECX, 7.EBX, 7.ECX, 7.EDX, 80000001.EDX, 80000001.ECX."""

ENGINE_FEATURES = (0x078BFBFD, 0xC6D8220B, 0x00980189)
"""What the engine's array holds for this CPU model before it is masked: 1.EDX, 1.ECX, 7.EBX."""
