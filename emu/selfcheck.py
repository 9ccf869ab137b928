"""Proof, at start, that the loaded engine and our core fit together.

`engine.Engine` has checked where things are. Here a guest of fifty instructions runs on a machine
without devices and shows that what the core does to the engine has its effect: exact time in
mid-block at RDTSC, port and memory-mapped accesses; exceptions through the guest's own IDT; MSRs;
code that is changed through another mapping of its page; hidden instructions that fault; written
pages that are noted; HLT. Any difference is reported as one line by `UnsupportedHost`.
"""

from __future__ import annotations

import struct

from emu.cpu import HFLAGS_LONG, ClockHeader, Cpu, Reason, Wiring
from emu.engine import Library
from emu.errors import UnsupportedHost
from emu.memory import Memory

# At 0x1000. In the comments: the tick at which each instruction begins.
_CODE = bytes.fromhex(
    "90"  # 0   nop
    "90"  # 1   nop
    "0f31"  # 2   rdtsc
    "4189c0"  # 3   mov  r8d, eax
    "e410"  # 4   in   al, 0x10
    "4188c1"  # 5   mov  r9b, al
    "8b1c2500000a00"  # 6   mov  ebx, [0xa0000]
    "4189da"  # 7   mov  r10d, ebx
    "cc"  # 8   int3              9, 10 in the handler
    "0f0b"  # 11  ud2               11..15 in the handler
    "b91b000000"  # 17  mov  ecx, 0x1b
    "0f32"  # 18  rdmsr
    "4189c4"  # 19  mov  r12d, eax
    "0f30"  # 20  wrmsr
    "bf00000100"  # 21  mov  edi, 0x10000
    "ffd7"  # 22  call rdi          23, 24
    "4189c5"  # 25  mov  r13d, eax
    "bf01000140"  # 26  mov  edi, 0x40010001: the same page by another address
    "c60702"  # 27  mov  byte [rdi], 2
    "bf00000100"  # 28  mov  edi, 0x10000
    "ffd7"  # 29  call rdi          30, 31
    "4189c6"  # 32  mov  r14d, eax
    "0fc7f0"  # 33  rdrand eax: hidden, so #UD; 33..39 in the handler
    "90"  # 40  nop
    "0f31"  # 41  rdtsc
    "4189c7"  # 42  mov  r15d, eax
    "f4"  # 43  hlt
)
_BREAKPOINT = bytes.fromhex("4983c301 48cf".replace(" ", ""))  # add r11, 1; iretq
# add r11, 0x10; add qword [rsp], 2; mov rsi, [rsp]; cmp byte [rsi], 0xf0; jne +5;
# add qword [rsp], 1; iretq
_INVALID = bytes.fromhex("4983c3104883042402488b3424803ef075054883042401 48cf".replace(" ", ""))
_FUNCTION = bytes.fromhex("b801000000c3")  # mov eax, 1; ret

# At 0x1800: registers that the core reads and writes inside the engine, set by the guest itself.
_REGISTERS = bytes.fromhex(
    "b9810000c0b811111111ba00000800"  # mov ecx, 0xc0000081; mov eax, 0x11111111; mov edx, 0x80000
    "0f30ffc1ffc00f30ffc1ffc00f30ffc1ffc00f30"  # STAR, LSTAR, CSTAR, FMASK: wrmsr; inc ecx; inc eax
    "b9020100c0ffc00f30"  # mov ecx, 0xc0000102; inc eax; wrmsr (KERNEL_GS_BASE)
    "b977020000b80604070089c20f30"  # mov ecx, 0x277; mov eax, 0x70406; mov edx, eax; wrmsr (PAT)
    "b9750100000f30"  # mov ecx, 0x175; wrmsr (SYSENTER_ESP)
    "b900020000b80050341231d20f30"  # mov ecx, 0x200; mov eax, 0x12345000; xor edx, edx; wrmsr (MTRR)
    "dbe3d9eb"  # fninit; fldpi
    "48b81122334455667788664c0f6ef8"  # mov rax, 0x8877665544332211; movq xmm15, rax
    "0f23d8"  # mov dr3, rax
    "b8803f0000500fae1424d92c24"  # mov eax, 0x3f80; push rax; ldmxcsr [rsp]; fldcw [rsp]
    "f4"  # hlt
)
_REGISTERS_AT = 0x1800
_EXPECTED = {
    "star": 0x80000_11111111,
    "lstar": 0x80000_11111112,
    "cstar": 0x80000_11111113,
    "fmask": 0x80000_11111114,
    "kernel_gs_base": 0x80000_11111115,
    "pat": 0x70406_00070406,
    "sysenter_esp": 0x70406_00070406,
    "mtrr_var0": 0x12345000,
    "fpu.top": 7,
    "fpu.control": 0x3F80,
    "st7.mantissa": 0xC90FDAA22168C235,
    "st7.exponent": 0x4000,
    "xmm15.low": 0x8877665544332211,
    "dr3": 0x8877665544332211,
    "mxcsr": 0x3F80,
}

_CODE_AT, _BP_AT, _UD_AT, _FUNCTION_AT = 0x1000, 0x1200, 0x1220, 0x10000
_GDT_AT, _IDT_AT, _TABLES_AT, _STACK = 0x2000, 0x3000, 0x4000, 0x9000


def _gate(handler: int) -> bytes:
    return struct.pack("<HHHHII", handler & 0xFFFF, 8, 0x8E00, handler >> 16, 0, 0)


def write_flat_guest(memory: Memory, cpu: Cpu, entry: int, stack: int) -> None:
    """Put the CPU in 64-bit mode, ring 0, interrupts off: the low 2 MiB mapped at 0 and again at
    1 GiB, GDT at 0x2000, IDT at 0x3000, page tables from 0x4000."""
    tables = bytearray(4 * 4096)
    struct.pack_into("<Q", tables, 0, _TABLES_AT + 0x1003)
    struct.pack_into("<QQ", tables, 0x1000, _TABLES_AT + 0x2003, _TABLES_AT + 0x3003)
    struct.pack_into("<Q", tables, 0x2000, 0x83)
    struct.pack_into("<Q", tables, 0x3000, 0x83)
    memory.write(_TABLES_AT, tables, by="selfcheck")
    memory.write(_GDT_AT, struct.pack("<QQQ", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF), by="selfcheck")
    flat = {"base": 0, "limit": 0xFFFFFFFF, "flags": 0xCF9300, "selector": 0x10}
    values = {f"{s}__{k}": v for s in ("es", "ss", "ds") for k, v in flat.items()}
    cpu.set_registers(
        **values,
        cs__selector=8, cs__base=0, cs__limit=0xFFFFFFFF, cs__flags=0xAF9B00,
        gdtr__base=_GDT_AT, gdtr__limit=23, idtr__base=_IDT_AT, idtr__limit=0xFFF,
        cr0=0x80010033, cr3=_TABLES_AT, cr4=0x620, efer=0xD01,
        hflags=HFLAGS_LONG, hflags2=1, rflags=2, rip=entry, rsp=stack,
    )  # fmt: skip
    cpu.flush_tlb()


def verify(lib: Library) -> None:
    """Run the proof. Raises `UnsupportedHost` with one line on any mismatch."""
    memory = Memory(2 << 20, lib.core)
    seen: list[tuple[str, int]] = []

    def note(what: str, now: int, value: int = 0) -> int:
        seen.append((what, now))
        return value

    wiring = Wiring(
        io_read=lambda port, size, now: note(f"in {port:#x}/{size}", now, 0x5A),
        io_write=lambda port, size, value, now: None,
        mmio_read=lambda addr, size, now: note(f"mmio {addr:#x}/{size}", now, 0x12345678),
        mmio_write=lambda addr, size, value, now: None,
        events=lambda now: None,
        acknowledge=lambda now: None,
        msr_read=lambda msr, now: note(f"rdmsr {msr:#x}", now, 0xFEE00900),
        msr_write=lambda msr, value, now: bool(note(f"wrmsr {msr:#x}", now, 1)),
        cr8_read=lambda: 0,
        cr8_write=lambda value, now: None,
        probe=lambda pc, now: False,
        user=lambda now: None,
    )
    clock = ClockHeader(ticks=0, skipped=0, deadline=(1 << 64) - 1)
    cpu = Cpu(lib, memory, clock, wiring)
    try:
        memory.write(_CODE_AT, _CODE, by="selfcheck")
        memory.write(_BP_AT, _BREAKPOINT, by="selfcheck")
        memory.write(_UD_AT, _INVALID, by="selfcheck")
        memory.write(_FUNCTION_AT, _FUNCTION, by="selfcheck")
        memory.write(_IDT_AT + 3 * 16, _gate(_BP_AT), by="selfcheck")
        memory.write(_IDT_AT + 6 * 16, _gate(_UD_AT), by="selfcheck")
        write_flat_guest(memory, cpu, _CODE_AT, _STACK)
        memory.drain()
        memory.take_dirty()
        reason = cpu.run(100_000)
        r = cpu.registers()
        dirty = set(memory.take_dirty())
        checks: list[tuple[str, object, object]] = [
            ("end of run", reason, Reason.DEADLOCK),
            ("time in mid-block (RDTSC)", r["r8"], 2),
            (
                "device accesses and their times",
                seen,
                [("in 0x10/1", 4), ("mmio 0xa0000/4", 6), ("rdmsr 0x1b", 18), ("wrmsr 0x1b", 20)],
            ),
            ("port data", r["r9"] & 0xFF, 0x5A),
            ("device memory data", r["r10"], 0x12345678),
            ("exceptions delivered", r["r11"], 0x21),
            ("MSR data", r["r12"], 0xFEE00900),
            ("code before it is changed", r["r13"], 1),
            ("code changed through another mapping", r["r14"], 2),
            ("time after exceptions", r["r15"], 41),
            ("instructions", clock.ticks, 44),
            # the function, the stack, and the accessed and dirty bits in four table pages
            ("written pages", dirty, {_FUNCTION_AT >> 12, (_STACK - 8) >> 12, 4, 5, 6, 7}),
            ("halted", r["halted"], 1),
        ]
        for what, found, wanted in checks:
            if found != wanted:
                raise UnsupportedHost(
                    f"the engine does not behave like unicorn 2.1.4: {what}: {found!r}, not {wanted!r}"
                )
        memory.write(_REGISTERS_AT, _REGISTERS, by="selfcheck")
        cpu.set_registers(rip=_REGISTERS_AT, rsp=_STACK, halted=0)
        cpu.run(clock.ticks + 1000)
        r = cpu.registers()
        for name, value in _EXPECTED.items():
            if r[name] != value:
                raise UnsupportedHost(
                    f"the engine keeps {name} elsewhere ({r[name]:#x}): not the unicorn 2.1.4 wheel"
                )
        if not cpu.header.tlb_walks:
            raise UnsupportedHost("the engine does not use our TLB: was unicorn imported before emu?")
    finally:
        cpu.close()
        memory.close()
