"""The image that a Linux kernel is about to jump to, read at the entry of `machine_kexec`.

`struct kimage` is no ABI. Its first words have been the same for many releases, and every value is
checked against what it must be; where anything does not fit, nothing is believed and `read` says
so, and what needs it is reported as not checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.debug import guest
from emu.errors import EmuError
from emu.machine import Machine

_DESTINATION, _INDIRECTION, _DONE, _SOURCE = 1, 2, 4, 8
_SEGMENTS_MAX = 16
_VMEMMAP = 0xFFFF_EA00_0000_0000
_STRUCT_PAGE = 64
"""Linux x86-64 without KASLR: `struct page` n is at this address plus 64 n."""
_STACK = 16384
_NR_SEGMENTS_AT = (48, 56, 64)
"""Where the number of segments is, depending on which of two optional members the kernel has."""


class UnknownImage(EmuError):
    """The structure at the address is not a kimage as this knows it."""

    kind = "unknown-kimage"


@dataclass(frozen=True)
class Image:
    """``start`` is where the jump goes; ``segments`` are (physical address, size in memory, size of
    the contents) in the order loaded; ``control_pages`` are physical page addresses: the list of what
    is copied where, the code that copies, and the page it swaps through. ``stack`` are those of the
    stack that `machine_kexec` runs on; the jump writes them."""

    start: int
    segments: list[tuple[int, int, int]]
    control_pages: list[int]
    stack: list[int]

    @property
    def kernel(self) -> int | None:
        """Address of the segment that holds the kernel: the largest that is not an initrd (the one
        whose memory is larger than its contents), or None."""
        grown = [(m - b, a) for a, m, b in self.segments if m - b >= 1 << 20]
        return max(grown)[1] if grown else None


def read(m: Machine, address: int) -> Image:
    """The image at this virtual address. Raises UnknownImage."""
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
            if inside and all(a % 4096 == 0 and n % 4096 == 0 and n > 0 and b <= n for a, n, b in segments):
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
        entry = int.from_bytes(m.memory.read(at, 8).tobytes(), "little")
        at += 8
    return pages
