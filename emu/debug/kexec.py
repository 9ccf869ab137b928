"""The image that a kernel is about to jump to, read at the entry of `machine_kexec`; and what its purgatory
says if it does not let it run.

`struct kimage` is no ABI. For the project's own kernels its layout comes from the debug information of their
ELF file. That of Linux is guessed: its first words have been the same for many releases. Either way every
value is checked against what it must be; where anything does not fit, nothing is believed and `read` says so,
and what needs it is reported as not checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emu.debug import guest
from emu.debug.layout import Layouts, Structure
from emu.errors import AddressError, EmuError
from emu.machine import Machine

_DESTINATION, _INDIRECTION, _DONE, _SOURCE = 1, 2, 4, 8
_SEGMENTS_MAX = 16
_VMEMMAP = 0xFFFF_EA00_0000_0000
_STRUCT_PAGE = 64
"""Linux x86-64 without KASLR: `struct page` n is at this address plus 64 n."""
_STACK = 16384
_NR_SEGMENTS_AT = (48, 56, 64)
"""Where the number of segments is, depending on which of two optional members the kernel has."""

_OURS = {"source_pages", "control_code", "kernel"}
"""Members of our `struct kimage` that Linux's has not."""
_LOWER_HALF, _LARGE, _TABLE_ADDRESS = 256, 0x80, 0x000F_FFFF_FFFF_F000
_TABLES_MAX = 1 << 12
_PURGATORY_MAGIC = b"URGATORY"
_PURGATORY_REGIONS, _PURGATORY_REGION = 88, 56


class UnknownImage(EmuError):
    """The structure at the address is not a kimage as this knows it."""

    kind = "unknown-kimage"


@dataclass(frozen=True)
class Image:
    """``start`` is where the jump goes; ``segments`` are (physical address, size in memory, size of
    the contents) in the order loaded; ``control_pages`` are physical page addresses: the list of what
    is copied where, the code that copies, the page it swaps through (Linux), page tables (ours). ``stack``
    are those of the stack that `machine_kexec` runs on; the jump writes them."""

    start: int
    segments: list[tuple[int, int, int]]
    control_pages: list[int]
    stack: list[int]
    kernel_segment: int | None = None
    """where the image says that the kernel is; Linux does not say"""

    @property
    def kernel(self) -> int | None:
        """Address of the segment that holds the kernel, or None. If the image does not say: the largest that
        is not an initrd (the one whose memory is larger than its contents)."""
        if self.kernel_segment is not None:
            return self.kernel_segment
        grown = [(m - b, a) for a, m, b in self.segments if m - b >= 4096]
        return max(grown)[1] if grown else None


@dataclass(frozen=True)
class Refused:
    """A segment whose digest was another when it arrived: its number in the image, and ``size`` bytes at
    ``start`` (physical address) that were to have ``expected`` as SHA-256 and had ``computed``."""

    segment: int
    start: int
    size: int
    expected: bytes
    computed: bytes


def refused(m: Machine, image: Image) -> Refused | None:
    """Why the purgatory of one of the project's kernels halted; None if it did not, or is none of theirs.
    The layout is in kernels/purgatory/purgatory.h."""
    try:
        head = m.memory.copy(image.start, _PURGATORY_REGIONS)
        failed = int.from_bytes(head[48:56], "little")
        if head[16:24] != _PURGATORY_MAGIC or not 1 <= failed <= _SEGMENTS_MAX:
            return None
        at = image.start + _PURGATORY_REGIONS + (failed - 1) * _PURGATORY_REGION
        region = m.memory.copy(at, _PURGATORY_REGION)
    except AddressError:
        return None
    start, size, segment = (int.from_bytes(region[i : i + 8], "little") for i in (0, 8, 16))
    return Refused(segment, start, size, region[24:56], head[56:88])


def read(m: Machine, address: int, elf: Path | Layouts | None = None) -> Image:
    """The image at this virtual address. ``elf`` is the running kernel's, or what was read of it, if it is
    known. Raises UnknownImage, and ImageError if the ELF file is damaged."""
    ours = _ours(elf)
    return _read_linux(m, address) if ours is None else _read_ours(m, address, *ours)


def _ours(elf: Path | Layouts | None) -> tuple[Structure, Structure] | None:
    """Layouts of kimage and of its segments; None if the kernel is another's, or has no debug information."""
    if elf is None:
        return None
    layouts = Layouts.read(elf) if isinstance(elf, Path) else elf
    if "kimage" not in layouts or not _OURS.issubset(layouts.struct("kimage").members):
        return None
    return layouts.struct("kimage"), layouts.struct("kexec_segment")


def _read_ours(m: Machine, address: int, kimage: Structure, segment: Structure) -> Image:
    where = f"{address:#x}"
    try:
        raw = guest.read(m, address, kimage.size)

        def word(member: str) -> int:
            at = kimage.offset(member)
            return int.from_bytes(raw[at : at + 8], "little")

        count = word("nr_segments")
        if not 1 <= count <= _SEGMENTS_MAX:
            raise UnknownImage(f"it has {count} segments", where)
        segments = []
        for i in range(count):
            at = kimage.offset("segment") + i * segment.size
            start, memory, contents = (
                int.from_bytes(raw[at + segment.offset(name) :][:8], "little")
                for name in ("mem", "memsz", "bufsz")
            )
            segments.append((start, memory, contents))
        start, kernel = word("start"), word("kernel")
        if not _plausible(segments) or not any(a <= start < a + n for a, n, _ in segments):
            raise UnknownImage("its segments make no sense", where)
        if kernel not in (a for a, _, _ in segments):
            raise UnknownImage(f"its kernel is at {kernel:#x}, where no segment is", where)
        control = [*_control_pages(m, word("head")), word("control_code")]
        control += _tables(m, guest.translate(m, word("pgd")))
    except (guest.NotMapped, AddressError) as e:
        raise UnknownImage(str(e), where) from None
    return Image(start, segments, control, _stack(m), kernel)


def _tables(m: Machine, pgd: int) -> list[int]:
    """Pages of the page tables that map the lower half, where memory is mapped 1:1 for the jump."""
    pages, level = [pgd], [pgd]
    for used in (_LOWER_HALF, 512, 512):
        entries = [e for table in level for e in m.memory.read(table, 8 * used).view("<u8").tolist()]
        level = [e & _TABLE_ADDRESS for e in entries if e & 1 and not e & _LARGE]
        pages += level
        if len(pages) > _TABLES_MAX:
            raise UnknownImage(f"its page tables have more than {_TABLES_MAX} pages", f"{pgd:#x}")
    return pages


def _plausible(segments: list[tuple[int, int, int]]) -> bool:
    return all(a % 4096 == 0 and n % 4096 == 0 and n > 0 and b <= n for a, n, b in segments)


def _read_linux(m: Machine, address: int) -> Image:
    where = f"{address:#x}"
    try:
        head = guest.u64(m, address)
        start = guest.u64(m, address + 24)
        for at in _NR_SEGMENTS_AT:
            count = guest.u64(m, address + at)
            if not 1 <= count <= _SEGMENTS_MAX:
                continue
            raw = guest.read(m, address + at + 8, 32 * count)
            segments = []
            for i in range(count):
                words = [int.from_bytes(raw[32 * i + 8 * k : 32 * i + 8 * k + 8], "little") for k in range(4)]
                segments.append((words[2], words[3], words[1]))
            inside = any(a <= start < a + n for a, n, _ in segments)
            if inside and _plausible(segments):
                control = _control_pages(m, head)
                for pointer in (guest.u64(m, address + 32), guest.u64(m, address + 40)):
                    number, odd = divmod(pointer - _VMEMMAP, _STRUCT_PAGE)
                    if pointer and not odd and 0 <= number << 12 < 1 << 46:
                        control.append(number << 12)
                return Image(start, segments, control, _stack(m))
    except guest.NotMapped as e:
        raise UnknownImage(str(e), where) from None
    raise UnknownImage("no plausible list of segments", where)


def _stack(m: Machine) -> list[int]:
    top = m.cpus[0].registers()["rsp"] & -_STACK
    return [guest.translate(m, top + at) for at in range(0, _STACK, 4096)]


def _control_pages(m: Machine, head: int) -> list[int]:
    """Pages of the list that says what is copied where (physical addresses)."""
    pages: list[int] = []
    entry, budget = head, 1 << 20
    at = 0
    while not entry & _DONE and budget:
        budget -= 1
        if entry & _INDIRECTION:
            at = entry & ~4095
            if at in pages:
                raise UnknownImage("its list of pages is a loop", f"{at:#x}")
            pages.append(at)
        elif not entry & (_DESTINATION | _SOURCE):
            raise UnknownImage(f"its list of pages has an entry {entry:#x}", f"{at:#x}")
        if not at:
            raise UnknownImage("its list of pages does not begin with one", f"{entry:#x}")
        entry = int.from_bytes(m.memory.copy(at, 8), "little")
        at += 8
    return pages
