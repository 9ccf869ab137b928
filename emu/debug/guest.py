"""Looking into a stopped guest: virtual addresses, registers, disassembly.

Reads what the hardware would read, through the guest's own page tables, without touching accessed
bits. Knows x86-64 paging (AMD64 APM vol. 2, 5.3) and nothing of any kernel.
"""

from __future__ import annotations

import capstone

from emu.debug.symbols import Symbols
from emu.errors import AddressError, EmuError
from emu.machine import Machine
from emu.memory import PAGE

_ADDRESS = 0x000F_FFFF_FFFF_F000


class NotMapped(AddressError):
    """A virtual address has no translation, or one outside RAM."""


def _entry(m: Machine, at: int) -> int:
    return int.from_bytes(m.memory.copy(at, 8), "little")


def lookup(m: Machine, address: int, cr3: int) -> tuple[int, int]:
    """(physical address, table entry that says so) of a virtual one by the 64-bit paging that ``cr3``
    points to. Raises NotMapped."""
    if (address + (1 << 47)) >> 48 not in (0, 1 << 16):
        raise NotMapped("is not canonical", f"{address:#x}")
    table = cr3 & _ADDRESS
    try:
        for shift in (39, 30, 21, 12):
            entry = _entry(m, table + 8 * (address >> shift & 511))
            if not entry & 1:
                raise NotMapped("is not mapped", f"{address:#x}")
            table = entry & _ADDRESS
            if shift == 12 or (shift < 39 and entry & 0x80):
                return (table & ~((1 << shift) - 1)) | (address & ((1 << shift) - 1)), entry
    except AddressError as e:
        raise NotMapped(f"has page tables outside RAM ({e})", f"{address:#x}") from None
    raise AssertionError("unreachable")


def translate(m: Machine, address: int, cr3: int | None = None) -> int:
    """Physical address of a virtual one by the CPU's current tables, or those of 64-bit paging that ``cr3``
    points to. Raises NotMapped."""
    if cr3 is None:
        registers = m.cpus[0].registers()
        if not registers["cr0"] >> 31:
            return address
        if not registers["efer"] & 0x400:
            raise NotMapped("only 64-bit paging can be looked through", f"{address:#x}")
        cr3 = registers["cr3"]
    return lookup(m, address, cr3)[0]


def read(m: Machine, address: int, size: int) -> bytes:
    """Bytes at a virtual address. Raises NotMapped."""
    out = b""
    while size:
        piece = min(size, 4096 - (address & 4095))
        phys = translate(m, address)
        try:
            out += m.memory.copy(phys, piece)
        except AddressError:
            raise NotMapped(f"is mapped to {phys:#x}, which is not RAM", f"{address:#x}") from None
        address += piece
        size -= piece
    return out


class UnknownLayout(EmuError):
    """A structure of the kernel is not where or what it must be."""

    kind = "unknown-layout"


class KernelMemory:
    """The virtual memory of a stopped kernel: make a new one whenever it has run on.

    ``cr3`` points to its tables, None: those of the processor. Each page is looked up once. Methods raise
    UnknownLayout.
    """

    def __init__(self, machine: Machine, cr3: int | None) -> None:
        self.machine = machine
        self._cr3 = cr3
        self._pages: dict[int, int] = {}

    def phys(self, address: int) -> int:
        """Physical address of a virtual one."""
        page, offset = divmod(address, PAGE)
        found = self._pages.get(page)
        if found is None:
            try:
                found = translate(self.machine, address - offset, self._cr3)
            except NotMapped as e:
                raise UnknownLayout(f"{address:#x} has no physical address: {e.message}") from None
            self._pages[page] = found
        return found + offset

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a virtual address."""
        out = b""
        while size:
            piece = min(size, PAGE - address % PAGE)
            try:
                out += self.machine.memory.copy(self.phys(address), piece)
            except AddressError as e:
                raise UnknownLayout(f"{address:#x} cannot be read: {e.message}") from None
            address += piece
            size -= piece
        return out

    def number(self, address: int, size: int = 8) -> int:
        """The unsigned number at a virtual address."""
        return int.from_bytes(self.read(address, size), "little")


def u64(m: Machine, address: int) -> int:
    """The 64-bit word at a virtual address. Raises NotMapped."""
    return int.from_bytes(read(m, address, 8), "little")


_INSN_MAX = 15
_FUNCTION_MAX = 16384
"""Bytes of a function that are gone through to find the instructions before an address."""


def _code(m: Machine, at: int, size: int) -> bytes:
    """Up to ``size`` bytes of code, fewer where the rest is not mapped."""
    out = b""
    while size > 0:
        piece = min(size, 4096 - (at & 4095))
        try:
            out += read(m, at, piece)
        except NotMapped:
            break
        at += piece
        size -= piece
    return out


def _before(m: Machine, around: int, symbols: Symbols | None, count: int) -> list[capstone.CsInsn]:
    """The instructions before an address. Code cannot be decoded backwards: the function is decoded from its
    beginning, and what does not lead to the address is no answer."""
    start = symbols.start(around) if symbols is not None else None
    if start is None or not 0 < around - start <= _FUNCTION_MAX:
        return []
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    found = list(engine.disasm(_code(m, start, around - start), start))
    if not found or found[-1].address + found[-1].size != around:
        return []
    return found[-count:]


def disassemble(
    m: Machine, around: int, symbols: Symbols | None, before: int = 4, after: int = 6
) -> list[str]:
    """Lines of disassembly around an address, which is marked; those before it where symbols are known."""
    code = _code(m, around, _INSN_MAX * after)
    if not code:
        return [f"=> {around:#018x}  (not mapped)"]
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    found = list(engine.disasm(code, around, after))
    lines: list[str] = []
    for insn in [*_before(m, around, symbols, before), *found]:
        here = insn.address == around
        name = f"  <{symbols.describe(around)}>" if symbols and here else ""
        mark = "=>" if here else "  "
        text = f"{insn.mnemonic} {insn.op_str}".rstrip()
        lines.append(f"{mark} {insn.address:#018x}  {text}{name}")
    if not found:
        lines.append(f"=> {around:#018x}  (not an instruction: {code[:8].hex(' ')})")
    return lines


def named(address: int, symbols: Symbols | None) -> str:
    """An address with its symbol and source line, where they are known."""
    if symbols is None:
        return f"{address:#x}"
    line = symbols.line(address)
    return f"{address:#x} {symbols.describe(address)}" + (f" ({line})" if line else "")


def epitaph(m: Machine, symbols: Symbols | None) -> str:
    """Where the CPU is and what it last stumbled over, for a person."""
    r = m.cpus[0].registers()
    h = m.cpus[0].header
    out = [f"rip {named(r['rip'], symbols)}"]
    if h.exceptions:
        out.append(
            f"last exception: vector {h.last_vector}, error {h.last_error:#x}, cr2 {h.last_cr2:#x}, "
            f"at {named(int(h.last_rip), symbols)}"
        )
    for row in (("rax", "rbx", "rcx", "rdx"), ("rsi", "rdi", "rbp", "rsp"), ("cr0", "cr3", "cr4", "rflags")):
        out.append("  ".join(f"{name} {r[name]:016x}" for name in row))
    out += disassemble(m, r["rip"], symbols)
    return "\n".join(out)
