"""Proof, at start, that the loaded engine and our core fit together.

`engine.Engine` has checked where things are. Here a guest of fifty instructions runs on a machine
without devices and shows that what the core does to the engine has its effect: exact time in
mid-block at RDTSC, port and memory-mapped accesses; exceptions through the guest's own IDT; MSRs;
code that is changed through another mapping of its page; hidden instructions that fault; written
pages that are noted; HLT. Any difference is reported as one line by `UnsupportedHost`.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import struct
import warnings
from typing import NoReturn

from emu.cpu import HFLAGS_LONG, ClockHeader, Cpu, Reason, Wiring
from emu.engine import Library
from emu.errors import UnsupportedHost
from emu.memory import Memory

PROOF_SECONDS_MAX = 3
"""CPU time for the proof, which takes a few hundredths of a second."""
_PROVED = b"proved"

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

# At 0x1800: registers that the core reads and writes inside the engine, set and read by the guest itself.
_REGISTERS = bytes.fromhex(
    "b9810000c0b811111111ba00000800"  # mov ecx, 0xc0000081; mov eax, 0x11111111; mov edx, 0x80000
    "0f30ffc1ffc00f30ffc1ffc00f30ffc1ffc00f30"  # STAR, LSTAR, CSTAR, FMASK: wrmsr; inc ecx; inc eax
    "b9020100c0ffc00f30"  # mov ecx, 0xc0000102; inc eax; wrmsr (KERNEL_GS_BASE)
    "b977020000b80604070089c20f30"  # mov ecx, 0x277; mov eax, 0x70406; mov edx, eax; wrmsr (PAT)
    "b9750100000f30b976010000ffc00f30"  # SYSENTER_ESP; inc eax: SYSENTER_EIP
    "31d2b974010000b8381200000f30"  # xor edx, edx; mov ecx, 0x174; mov eax, 0x1238; wrmsr (SYSENTER_CS)
    "b9170101c0b8007000000f30"  # mov ecx, 0xc0010117; mov eax, 0x7000; wrmsr (VM_HSAVE_PA)
    "b900020000b8005034120f30"  # mov ecx, 0x200; mov eax, 0x12345000; wrmsr (the first variable MTRR)
    "b90f020000b8006834120f30"  # mov ecx, 0x20f; mov eax, 0x12346800; wrmsr (the last one)
    "b950020000b80606060689c20f30"  # mov ecx, 0x250; mov eax, 0x06060606; mov edx, eax; wrmsr (fixed MTRR)
    "b96f0200000f30b9ff020000b8060c000031d20f30"  # the last one; MTRR_DEF_TYPE: 0xc06
    "b9a0010000b8010000000f30"  # mov ecx, 0x1a0; mov eax, 1; wrmsr (MISC_ENABLE)
    "b9030100c0b85a5a00000f300f01f94189c9"  # TSC_AUX: 0x5a5a; rdtscp; mov r9d, ecx
    "b9800000c00f324189c0"  # mov ecx, 0xc0000080; rdmsr (EFER); mov r8d, eax
    "dbe3d9ebd9e8d9ebdef9d9e5"  # fninit; fldpi; fld1; fldpi; fdivp (inexact); fxam
    "48b81122334455667788664c0f6ef8"  # mov rax, 0x8877665544332211; movq xmm15, rax
    "0f23d8"  # mov dr3, rax
    "b8803f0000500fae1424"  # mov eax, 0x3f80; push rax; ldmxcsr [rsp]
    "b87f02000050d92c24"  # mov eax, 0x27f; push rax; fldcw [rsp]
    "b8301200008ed8"  # mov eax, 0x1230; mov ds, eax: #GP(0x1230)
    "f4"  # hlt
)
_GENERAL_PROTECTION = bytes.fromhex("415a 4883042402 48cf")  # pop r10; add qword [rsp], 2; iretq
_REGISTERS_AT, _GP_AT = 0x1800, 0x1240
_REGISTERS_TICKS = 79  # three of them in the handler; what faulted did not retire
_EXPECTED = {
    "star": 0x80000_11111111,
    "lstar": 0x80000_11111112,
    "cstar": 0x80000_11111113,
    "fmask": 0x80000_11111114,
    "kernel_gs_base": 0x80000_11111115,
    "pat": 0x70406_00070406,
    "sysenter_cs": 0x1238,
    "sysenter_esp": 0x70406_00070406,
    "sysenter_eip": 0x70406_00070407,
    "vm_hsave_pa": 0x7000,
    "mtrr_var0": 0x12345000,
    "mtrr_var15": 0x12346800,
    "mtrr_fixed0": 0x06060606_06060606,
    "mtrr_fixed10": 0x06060606_06060606,
    "mtrr_def_type": 0xC06,
    "misc_enable": 1,
    "xcr0": 3,
    "tsc_aux": 0x5A5A,
    "r9": 0x5A5A,  # TSC_AUX by the guest's RDTSCP
    "r8": 0xD01,  # EFER by the guest's RDMSR
    "r10": 0x1230,  # the error code on the guest's stack
    "fpu.top": 6,
    "fpu.status": 0x0420,  # something was inexact; the top of the stack is a normal number
    "fpu.control": 0x27F,
    "fpu.tags": 0x0000_0101_0101_0101,
    "st7.mantissa": 0xC90FDAA22168C235,
    "st7.exponent": 0x4000,
    "st6.mantissa": 0xA2F9836E4E44152A,
    "st6.exponent": 0x3FFD,
    "xmm15.low": 0x8877665544332211,
    "dr3": 0x8877665544332211,
    "mxcsr": 0x3F80,
    "old_exception": 0xFFFFFFFF,
}

# At 0x1A80: what the host sets is what the guest sees.
_POINTERS = bytes.fromhex("d93425007000 00 f4")  # fnstenv [0x7000]; hlt
_POINTERS_AT, _ENVIRONMENT_AT = 0x1A80, 0x7000
_FPU_IP, _FPU_DP = 0x11112222, 0x33334444

# At 0x1980: a guest runs a guest.
_HYPERVISOR = bytes.fromhex(
    "b9800000c00f320d001000000f30"  # mov ecx, 0xc0000080; rdmsr; or eax, 0x1000; wrmsr (EFER.SVME)
    "b9170101c0b800b0000031d20f30"  # mov ecx, 0xc0010117; mov eax, 0xb000; xor edx, edx; wrmsr
    "b800a00000"  # mov eax, 0xa000
    "0f01d8"  # vmrun
    "f4"  # hlt
)
_HYPERVISOR_AT, _INNER_AT, _VMCB_AT = 0x1980, 0x1A00, 0xA000
_INNER = bytes.fromhex("9090f4")  # nop; nop; hlt: leaves for the hypervisor
_TICKS_BEFORE_INNER = 10
_INTERCEPTS = 1 << 32 | 1 << 24  # VMRUN, HLT
_EXPECTED_INSIDE = {
    "rip": _INNER_AT + 1,
    "svm.vmcb": _VMCB_AT,
    "svm.tsc_offset": 0x123456789A,
    "svm.intercept": _INTERCEPTS,
    "svm.intercept_cr_dr": 0x8000_4000_2000_0010,
    "svm.intercept_exceptions": 0x40000,
    "svm.nested_mode": 0,
    "svm.v_tpr": 5,
}

_CODE_AT, _BP_AT, _UD_AT, _FUNCTION_AT = 0x1000, 0x1200, 0x1220, 0x10000
_GDT_AT, _IDT_AT, _TABLES_AT, _STACK = 0x2000, 0x3000, 0x4000, 0x9000


def _gate(handler: int) -> bytes:
    return struct.pack("<HHHHII", handler & 0xFFFF, 8, 0x8E00, handler >> 16, 0, 0)


def _compare(cpu: Cpu, expected: dict[str, int]) -> None:
    r = cpu.registers()
    for name, value in expected.items():
        if r[name] != value:
            found = f"{r[name]:#x}, not {value:#x}"
            raise UnsupportedHost(f"the engine keeps {name} elsewhere ({found}): not the unicorn 2.1.4 wheel")


def _vmcb() -> bytes:
    """A VMCB (AMD64 APM vol. 2, appendix B) whose guest begins at _INNER_AT."""
    page = bytearray(4096)
    struct.pack_into("<4HIQ", page, 0, 0x10, 0x2000, 0x4000, 0x8000, 0x40000, _INTERCEPTS)
    masking, v_tpr, asid = 1 << 24, _EXPECTED_INSIDE["svm.v_tpr"], 1
    struct.pack_into("<QIxxxxI", page, 0x50, _EXPECTED_INSIDE["svm.tsc_offset"], asid, masking | v_tpr)
    for at in (0x400, 0x420, 0x430):  # ES, SS, DS
        struct.pack_into("<HHIQ", page, at, 0x10, 0xC93, 0xFFFFFFFF, 0)
    struct.pack_into("<HHIQ", page, 0x410, 8, 0xA9B, 0xFFFFFFFF, 0)
    struct.pack_into("<HHIQ", page, 0x460, 0, 0, 23, _GDT_AT)
    struct.pack_into("<HHIQ", page, 0x480, 0, 0, 0xFFF, _IDT_AT)
    for at, value in (
        (0x4D0, 0x1D01), (0x548, 0x620), (0x550, _TABLES_AT), (0x558, 0x80010033), (0x560, 0x400),
        (0x568, 0xFFFF0FF0), (0x570, 2), (0x578, _INNER_AT), (0x5D8, _STACK),
    ):  # fmt: skip
        struct.pack_into("<Q", page, at, value)  # EFER, CR4, CR3, CR0, DR7, DR6, RFLAGS, RIP, RSP
    return bytes(page)


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


def verify_apart(lib: Library) -> None:
    """`verify` in a copy of this process: an engine that does not fit may as well crash, or never end.

    Raises `UnsupportedHost` with one line.
    """
    receiver, sender = os.pipe()
    try:
        with warnings.catch_warnings():  # of other threads: the copy runs nothing of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError:  # no more processes are allowed here
        os.close(receiver)
        os.close(sender)
        verify(lib)
        return
    if child == 0:
        _prove(lib, sender)
    os.close(sender)
    said, status = b"", None
    try:
        said = os.read(receiver, 4096)
        status = os.waitpid(child, 0)[1]
    finally:
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(receiver)
    if said == _PROVED:
        return
    if said:
        raise UnsupportedHost(said.decode("utf-8", "replace"))
    number = os.WTERMSIG(status)
    how = "does not end" if number in (signal.SIGXCPU, signal.SIGKILL) else f"ends by signal {number}"
    raise UnsupportedHost(f"the engine does not behave like unicorn 2.1.4: the self-check {how}")


def _prove(lib: Library, sender: int) -> NoReturn:
    """In the copy: say through the pipe how it went, and leave nothing else behind."""
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # of CPU time, so that a busy host makes no difference
        resource.setrlimit(resource.RLIMIT_CPU, (PROOF_SECONDS_MAX, PROOF_SECONDS_MAX))
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        try:
            verify(lib)
            said = _PROVED
        except UnsupportedHost as e:
            said = e.message.encode()
        except BaseException as e:  # whatever a wrong engine leads to
            said = f"the engine does not behave like unicorn 2.1.4: {type(e).__name__}: {e}".encode()
        os.write(sender, said.split(b"\n")[0][:4096])
    finally:
        os._exit(0)


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
        memory.write(_GP_AT, _GENERAL_PROTECTION, by="selfcheck")
        memory.write(_IDT_AT + 13 * 16, _gate(_GP_AT), by="selfcheck")
        cpu.set_registers(rip=_REGISTERS_AT, rsp=_STACK, halted=0)
        begun = clock.ticks
        cpu.run(begun + 1000)
        _compare(cpu, _EXPECTED)
        if clock.ticks - begun != _REGISTERS_TICKS:
            raise UnsupportedHost(
                f"the engine does not behave like unicorn 2.1.4: {clock.ticks - begun} instructions set the "
                f"registers, not {_REGISTERS_TICKS}"
            )
        if (cpu.header.last_vector, cpu.header.last_error) != (13, 0x1230):
            raise UnsupportedHost("the engine keeps error codes elsewhere: not the unicorn 2.1.4 wheel")
        memory.write(_POINTERS_AT, _POINTERS, by="selfcheck")
        cpu.set_registers(rip=_POINTERS_AT, halted=0, fpu__ip=_FPU_IP, fpu__dp=_FPU_DP)
        cpu.run(clock.ticks + 1000)
        (ip, dp) = struct.unpack("<12xI4xI", memory.read(_ENVIRONMENT_AT, 24).tobytes())
        if (ip, dp) != (_FPU_IP, _FPU_DP):
            raise UnsupportedHost("the engine keeps x87 pointers elsewhere: not the unicorn 2.1.4 wheel")
        memory.write(_HYPERVISOR_AT, _HYPERVISOR, by="selfcheck")
        memory.write(_INNER_AT, _INNER, by="selfcheck")
        memory.write(_VMCB_AT, _vmcb(), by="selfcheck")
        cpu.set_registers(rip=_HYPERVISOR_AT, rsp=_STACK, halted=0)
        cpu.run(clock.ticks + _TICKS_BEFORE_INNER + 1)
        _compare(cpu, _EXPECTED_INSIDE)
        cpu.run(clock.ticks + 1000)
        _compare(cpu, {"rip": _HYPERVISOR_AT + len(_HYPERVISOR), "halted": 1})
        if not cpu.header.tlb_walks:
            raise UnsupportedHost("the engine does not use our TLB: was unicorn imported before emu?")
    finally:
        cpu.close()
        memory.close()
