"""How the handover reaches the next kernel on x86: the setup_data chain of the boot protocol, and the scratch
list.

Linux x86 boot protocol, setup_data (header 0x250 of boot_params): entries {next, type, length, data}; type 10
is KHO and holds where the root FDT and the list of scratch areas are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from kho.abi import (
    BOOT_PARAMS_HEADER,
    BOOT_PARAMS_MAGIC,
    BOOT_PARAMS_SETUP_DATA,
    KHO_DATA,
    PAGE_SIZE,
    SCRATCH_COUNT_MAX,
    SCRATCH_DTYPE,
    SETUP_DATA,
    SETUP_DATA_MAX,
    SETUP_KEXEC_KHO,
)
from kho.errors import FormatError
from kho.memory import Reader, merge

# What a search looks at, at most
HEADS_MAX = 256
MAGICS_MAX = 1 << 16


@dataclass(frozen=True)
class ScratchArea:
    """struct kho_scratch: memory the next kernel boots in. A size of 0 is legal."""

    phys: int
    size: int

    @property
    def end(self) -> int:
        """First address above the area."""
        return self.phys + self.size


def lies_in(areas: Iterable[ScratchArea], start: int, end: int) -> bool:
    """Whether [start, end) is scratch. Areas that touch are one piece of memory to a kernel."""
    return any(low <= start and end <= high for low, high in merge((a.phys, a.end) for a in areas))


@dataclass(frozen=True)
class ScratchList:
    """Where a list of scratch areas is in memory: address and bytes."""

    phys: int
    size: int


@dataclass(frozen=True)
class KhoData:
    """Payload of a type-10 entry, and where the entry is."""

    phys: int
    length: int
    fdt_addr: int
    fdt_size: int
    scratch_addr: int
    scratch_size: int

    def pack(self, following: int = 0) -> bytes:
        """The entry with its header, 48 bytes."""
        return SETUP_DATA.pack(following, SETUP_KEXEC_KHO, self.length) + KHO_DATA.pack(
            self.fdt_addr, self.fdt_size, self.scratch_addr, self.scratch_size
        )


@dataclass
class Chain:
    """A setup_data chain: all entries as (phys, type, length), and the KHO ones decoded."""

    head: int
    boot_params: int | None = None
    entries: list[tuple[int, int, int]] = field(default_factory=list)
    kho: list[KhoData] = field(default_factory=list)
    problem: str = ""


def read_chain(reader: Reader, head: int, boot_params: int | None = None) -> Chain:
    """Follow a chain as far as it goes; at most `SETUP_DATA_MAX` entries, none of them twice."""
    chain = Chain(head, boot_params)
    seen: set[int] = set()
    at = head
    while at:
        if not reader.contains(at, SETUP_DATA.size):
            chain.problem = f"the setup_data entry at {at:#x} is not in RAM"
            break
        if at in seen or len(seen) >= SETUP_DATA_MAX:
            chain.problem = f"the setup_data chain does not end ({at:#x} again)"
            break
        seen.add(at)
        following, kind, length = SETUP_DATA.unpack(reader.bytes(at, SETUP_DATA.size))
        chain.entries.append((at, kind, length))
        if kind == SETUP_KEXEC_KHO and reader.contains(at, SETUP_DATA.size + KHO_DATA.size):
            payload = reader.bytes(at + SETUP_DATA.size, KHO_DATA.size)
            chain.kho.append(KhoData(at, length, *KHO_DATA.unpack(payload)))
        at = following
    return chain


def find_chains(reader: Reader) -> list[Chain]:
    """Search populated RAM for boot_params whose setup_data chain has a KHO entry.

    Without one, any 16-byte header of type 10 and length 32 counts as a chain of its own.
    """
    heads: dict[int, int] = {}
    loose: list[int] = []
    looked_at = 0
    magic = int.from_bytes(BOOT_PARAMS_MAGIC, "little")
    pattern = np.uint64(KHO_DATA.size << 32 | SETUP_KEXEC_KHO)
    for start, view in reader.scan():
        whole = len(view) // PAGE_SIZE * PAGE_SIZE
        data = np.ascontiguousarray(view[:whole])
        # boot_params is aligned to 4 at least (a kernel copies it into a variable of its own), so its magic
        # is at an odd multiple of 2
        halves = data.view("<u2")
        hit = (halves[1:-1:2] == magic & 0xFFFF) & (halves[2::2] == magic >> 16)
        hits = np.flatnonzero(hit)[: max(0, MAGICS_MAX - looked_at)]
        looked_at += len(hits)
        for half in (hits * 2 + 1).tolist():
            base = half * 2 - BOOT_PARAMS_HEADER
            if len(heads) >= HEADS_MAX or not reader.contains(start + base + BOOT_PARAMS_SETUP_DATA, 8):
                continue
            head = int.from_bytes(reader.bytes(start + base + BOOT_PARAMS_SETUP_DATA, 8), "little")
            if head:
                heads.setdefault(head, start + base)
        longs = data.view("<u8")
        for word in np.flatnonzero(longs[1:] == pattern)[: HEADS_MAX - len(loose)].tolist():
            loose.append(start + word * 8)
    chains = [chain for head, page in heads.items() if (chain := read_chain(reader, head, page)).kho]
    known = {entry.phys for chain in chains for entry in chain.kho}
    for at in loose:
        if at not in known:
            chain = read_chain(reader, at)
            chain.kho = chain.kho[:1]
            if chain.kho:
                chains.append(chain)
    return chains


def read_scratch(reader: Reader, phys: int, size: int) -> list[ScratchArea]:
    """The scratch list of `size` bytes at `phys`; FormatError if that cannot be one, OutOfRange
    outside RAM.
    """
    count, rest = divmod(size, SCRATCH_DTYPE.itemsize)
    if rest or not 1 <= count <= SCRATCH_COUNT_MAX:
        raise FormatError(f"{size} bytes are no list of scratch areas", f"{phys:#x}", phys=phys)
    table = np.frombuffer(reader.bytes(phys, size), dtype=SCRATCH_DTYPE)
    return [ScratchArea(addr, length) for addr, length in table.tolist()]


def pack_scratch(areas: Sequence[ScratchArea]) -> bytes:
    """The list as it is in memory."""
    return np.array([(area.phys, area.size) for area in areas], dtype=SCRATCH_DTYPE).tobytes()
