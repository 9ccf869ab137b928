"""Looking into a stopped guest: virtual addresses, registers, disassembly.

Reads what the hardware would read, through the guest's own page tables, without touching accessed
bits. Knows x86-64 paging (AMD64 APM vol. 2, 5.3) and nothing of any kernel.
"""

from __future__ import annotations

import capstone

from emu.debug.symbols import Symbols
from emu.errors import AddressError
from emu.machine import Machine

_ADDRESS = 0x000F_FFFF_FFFF_F000


class NotMapped(AddressError):
    """A virtual address has no translation, or one outside RAM."""


def _entry(m: Machine, at: int) -> int:
    return int.from_bytes(m.memory.read(at, 8).tobytes(), "little")


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
    table = cr3 & _ADDRESS
    try:
        for shift in (39, 30, 21, 12):
            entry = _entry(m, table + 8 * (address >> shift & 511))
            if not entry & 1:
                raise NotMapped("is not mapped", f"{address:#x}")
            table = entry & _ADDRESS
            if shift == 12 or (shift < 39 and entry & 0x80):
                return (table & ~((1 << shift) - 1)) | (address & ((1 << shift) - 1))
    except AddressError as e:
        raise NotMapped(f"has page tables outside RAM ({e})", f"{address:#x}") from None
    raise AssertionError("unreachable")


def read(m: Machine, address: int, size: int) -> bytes:
    """Bytes at a virtual address. Raises NotMapped."""
    out = b""
    while size:
        piece = min(size, 4096 - (address & 4095))
        phys = translate(m, address)
        try:
            out += m.memory.read(phys, piece).tobytes()
        except AddressError:
            raise NotMapped(f"is mapped to {phys:#x}, which is not RAM", f"{address:#x}") from None
        address += piece
        size -= piece
    return out


def u64(m: Machine, address: int) -> int:
    """The 64-bit word at a virtual address. Raises NotMapped."""
    return int.from_bytes(read(m, address, 8), "little")


def disassemble(m: Machine, around: int, symbols: Symbols | None, after: int = 6) -> list[str]:
    """Lines of disassembly from ``around`` on, the first marked; with names where symbols are known."""
    try:
        room = 4096 - (around & 4095)
        code = read(m, around, min(16 * after, room))
        if room < 16 * after:
            code += read(m, around + room, 16 * after - room)
    except NotMapped:
        if "code" not in locals():
            return [f"  {around:#018x}  (not mapped)"]
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    lines: list[str] = []
    for i, insn in enumerate(engine.disasm(code, around, after)):
        name = f"  <{symbols.describe(insn.address)}>" if symbols and i == 0 else ""
        mark = "=>" if i == 0 else "  "
        lines.append(f"{mark} {insn.address:#018x}  {insn.mnemonic} {insn.op_str}{name}".rstrip())
    return lines or [f"=> {around:#018x}  (not an instruction: {code[:8].hex(' ')})"]


def epitaph(m: Machine, symbols: Symbols | None) -> str:
    """Where the CPU is and what it last stumbled over, for a person."""
    r = m.cpus[0].registers()
    h = m.cpus[0].header

    def named(address: int) -> str:
        if symbols is None:
            return f"{address:#x}"
        line = symbols.line(address)
        return f"{address:#x} {symbols.describe(address)}" + (f" ({line})" if line else "")

    out = [f"rip {named(r['rip'])}"]
    if h.exceptions:
        out.append(
            f"last exception: vector {h.last_vector}, error {h.last_error:#x}, cr2 {h.last_cr2:#x}, "
            f"at {named(int(h.last_rip))}"
        )
    for row in (("rax", "rbx", "rcx", "rdx"), ("rsi", "rdi", "rbp", "rsp"), ("cr0", "cr3", "cr4", "rflags")):
        out.append("  ".join(f"{name} {r[name]:016x}" for name in row))
    out += disassemble(m, r["rip"], symbols)
    return "\n".join(out)
