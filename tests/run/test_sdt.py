"""Probes of an ELF: notes made by hand, malformed ones, and those that the compiler makes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.boot import Boot
from emu.debug.guest import NotMapped
from emu.debug.sdt import (
    Argument,
    Constant,
    InMemory,
    Probe,
    ProbeError,
    Probes,
    Register,
    split_arguments,
)
from emu.errors import ImageError
from emu.machine import Machine, StopKind
from kernels.build import BARE_METAL, compile_with_zig, project_root
from tests.run.elf import elf, note, raw_note

SYMBOLS = {"table": 0x4000, "_x.1": 0x5000}

# ---- operands -------------------------------------------------------------------------------------

OPERANDS: list[tuple[str, Argument]] = [
    ("8@%rax", Argument(Register("rax", 0, 64), 8, False, "")),
    ("-4@%eax", Argument(Register("rax", 0, 32), 4, True, "")),
    ("2@%ax", Argument(Register("rax", 0, 16), 2, False, "")),
    ("1@%al", Argument(Register("rax", 0, 8), 1, False, "")),
    ("1@%ah", Argument(Register("rax", 8, 8), 1, False, "")),
    ("1@%sil", Argument(Register("rsi", 0, 8), 1, False, "")),
    ("8@%r15", Argument(Register("r15", 0, 64), 8, False, "")),
    ("4@%r8d", Argument(Register("r8", 0, 32), 4, False, "")),
    ("-2@%r9w", Argument(Register("r9", 0, 16), 2, True, "")),
    ("-1@%r10b", Argument(Register("r10", 0, 8), 1, True, "")),
    ("%ecx", Argument(Register("rcx", 0, 32), 4, False, "")),
    ("8@$42", Argument(Constant(42), 8, False, "")),
    ("-4@$-5", Argument(Constant(-5), 4, True, "")),
    ("8@$0x10", Argument(Constant(16), 8, False, "")),
    ("8@$010", Argument(Constant(8), 8, False, "")),
    ("8@$table", Argument(Constant(0x4000), 8, False, "")),
    ("8@$table+8-4", Argument(Constant(0x4004), 8, False, "")),
    ("8@(%rdi)", Argument(InMemory(0, "rdi"), 8, False, "")),
    ("8@-16(%rbp)", Argument(InMemory(-16, "rbp"), 8, False, "")),
    ("8@-4+8-20(%rbp)", Argument(InMemory(-16, "rbp"), 8, False, "")),
    ("4@0x10(%rsp,%rax,4)", Argument(InMemory(16, "rsp", "rax", 4), 4, False, "")),
    ("4@16(%rsp, %rax, 4)", Argument(InMemory(16, "rsp", "rax", 4), 4, False, "")),
    ("4@(%rsp,%r13)", Argument(InMemory(0, "rsp", "r13", 1), 4, False, "")),
    ("1@table(,%rcx,8)", Argument(InMemory(0x4000, "", "rcx", 8), 1, False, "")),
    ("8@table(%rip)", Argument(InMemory(0x4000), 8, False, "")),
    ("8@table+8(%rip)", Argument(InMemory(0x4008), 8, False, "")),
    ("8@8+_x.1(%rip)", Argument(InMemory(0x5008), 8, False, "")),
    ("8@16(%rip)", Argument(InMemory(16, "rip"), 8, False, "")),
    ("8@table", Argument(InMemory(0x4000), 8, False, "")),
    ("8@table-8", Argument(InMemory(0x3FF8), 8, False, "")),
    ("8@0x8000", Argument(InMemory(0x8000), 8, False, "")),
    ("8@%gs:0", Argument(InMemory(0, segment="gs"), 8, False, "")),
    ("8@%fs:8(%rax)", Argument(InMemory(8, "rax", segment="fs"), 8, False, "")),
]


@pytest.mark.parametrize(("text", "expected"), OPERANDS, ids=[text for text, _ in OPERANDS])
def test_operand(text: str, expected: Argument) -> None:
    found = Argument.parse(text, SYMBOLS)
    assert (found.operand, found.size, found.signed) == (expected.operand, expected.size, expected.signed)
    assert found.text == text


BAD_OPERANDS = [
    "8@", "@%rax", "3@%rax", "8@%rzx", "8@%xmm0", "8f@%xmm0", "8@$", "8@$x", "8@$1+", "8@$1 2", "8@$09",
    "8@nosuch(%rip)", "8@(%eax)", "8@(%ax)", "8@()", "8@(,)", "8@(%rax,%rsp,1)", "8@(%rax,%rbx,3)",
    "8@(%rax,%rbx,1,1)", "8@(%rip,%rax,1)", "8@(rax)", "8@4(%rax", "8@4%rax)", "8@%es:0", "16@%rax",
    "8@8@%rax", "8@(%rax)(%rbx)", "8@--8(%rbp)",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_OPERANDS)
def test_malformed_operand(text: str) -> None:
    with pytest.raises(ProbeError) as e:
        Argument.parse(text, SYMBOLS, "somewhere")
    assert e.value.where == "somewhere" and f'"{text}"' in e.value.message and e.value.kind == "bad-probe"


@given(st.text(alphabet="0123456789-+@%$(),:.axbpsirtable ", max_size=24))
def test_no_text_does_anything_else(text: str) -> None:
    """Whatever stands in a note, it is understood or refused with a ProbeError."""
    try:
        Argument.parse(text, SYMBOLS)
    except ProbeError as e:
        assert text in e.message


def test_arguments_are_split_at_white_space_outside_parentheses() -> None:
    assert split_arguments("8@%rax 4@16(%rsp, %rax, 4)  -1@$-5") == [
        "8@%rax",
        "4@16(%rsp, %rax, 4)",
        "-1@$-5",
    ]
    assert split_arguments("") == []


# ---- values ---------------------------------------------------------------------------------------


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Without paging, so that addresses are physical; memory from 0x4000 on counts up."""
    with Machine(16 << 20) as m:
        m.memory.write(0x4000, bytes(range(256)), by="test")
        m.memory.write(0x5000, b"\xff" * 16, by="test")
        yield m


REGISTER_VALUES = {"rax": 0x1122334455667788, "rbx": 0x4000, "rcx": 2, "rbp": 0x4010, "rip": 0x4020,
                   "fs.base": 0x4030, "gs.base": 0x4040, "cr0": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8@%rax", 0x1122334455667788),
        ("4@%eax", 0x55667788),
        ("2@%ax", 0x7788),
        ("1@%al", 0x88),
        ("1@%ah", 0x77),
        ("-1@%al", -0x78),
        ("-1@%ah", 0x77),
        ("8@%eax", 0x55667788),
        ("1@%rax", 0x88),
        ("8@$-1", 0xFFFFFFFFFFFFFFFF),
        ("-8@$-1", -1),
        ("1@$0x1ff", 0xFF),
        ("8@$table", 0x4000),
        ("1@(%rbx)", 0),
        ("2@(%rbx)", 0x0100),
        ("4@4(%rbx)", 0x07060504),
        ("8@-8(%rbp)", 0x0F0E0D0C0B0A0908),
        ("1@1(%rbx,%rcx,8)", 0x11),
        ("1@table(,%rcx,4)", 8),
        ("1@table+3(%rip)", 3),
        ("1@1(%rip)", 0x21),
        ("1@%fs:1", 0x31),
        ("1@%gs:(,%rcx,2)", 0x44),
        ("-4@_x.1", -1),
        ("4@_x.1", 0xFFFFFFFF),
    ],
)
def test_value(machine: Machine, text: str, value: int) -> None:
    assert Argument.parse(text, SYMBOLS).read(machine, REGISTER_VALUES) == value


def test_addresses_wrap(machine: Machine) -> None:
    wrapped = Argument.parse("1@0x4005(%rax)", {}).read(machine, {"rax": (1 << 64) - 1, "cr0": 0})
    assert wrapped == 4


def test_an_argument_where_nothing_is_mapped(machine: Machine) -> None:
    (probe,) = Probes.parse(elf(note(0x1000, arguments="8@0x7fff00000000"))).at("p:n")
    with pytest.raises(NotMapped):
        probe.read(machine)


# ---- notes ----------------------------------------------------------------------------------------


def test_notes() -> None:
    notes = (
        note(0x1000, "kho", "populate")
        + note(0, owner=b"GNU\0", kind=5)
        + note(0x1008, "kho", "preserve", "8@%rdi 8@$3")
        + note(0x1010, "kho", "preserve", "8@%rdi 8@$4", semaphore=0x2000)
    )
    probes = Probes.parse(elf(notes))
    assert set(probes.sites) == {"kho:populate", "kho:preserve"}
    assert "kho:populate" in probes and "kho:nosuch" not in probes and probes.at("kho:nosuch") == ()
    assert [(p.event, p.address, p.semaphore) for p in probes] == [
        ("kho:populate", 0x1000, 0),
        ("kho:preserve", 0x1008, 0),
        ("kho:preserve", 0x1010, 0x2000),
    ]
    assert [[a.operand for a in p.arguments] for p in probes.at("kho:preserve")] == [
        [Register("rdi", 0, 64), Constant(3)],
        [Register("rdi", 0, 64), Constant(4)],
    ]


def test_no_notes() -> None:
    assert list(Probes.parse(elf(None))) == []
    assert list(Probes.parse(elf(b""))) == []
    assert list(Probes.parse(elf(bytes(8)))) == [], "padding is no note"


@pytest.mark.parametrize(
    ("base", "sections", "symbols", "moved"),
    [
        (0x3000, [(".stapsdt.base", 0x3000, b"\0")], {}, 0),
        (0x2F00, [(".stapsdt.base", 0x3000, b"\0")], {}, 0x100),
        (0x3040, [(".stapsdt.base", 0x3000, b"\0")], {}, -0x40),
        (0x2F00, [], {"_stapsdt_base": 0x3000}, 0x100),
        (0x3000, [], {"_stapsdt_base": 0x3000}, 0),
        (0x2F00, [(".stapsdt.base", 0x3000, b"\0")], {"_stapsdt_base": 0x9000}, 0x100),
        (0x2F00, [], {}, 0),
        (0, [(".stapsdt.base", 0x3000, b"\0")], {}, 0),
    ],
)
def test_base(base: int, sections: list[tuple[str, int, bytes]], symbols: dict[str, int], moved: int) -> None:
    """A probe is as far from where it was linked to as the base section is from what the note says of it."""
    data = elf(note(0x1080 - moved, base=base, semaphore=0x8000), sections=sections, symbols=symbols)
    (probe,) = Probes.parse(data)
    assert (probe.address, probe.semaphore) == (0x1080, 0x8000 + moved)


def test_symbols_of_the_file() -> None:
    (probe,) = Probes.parse(elf(note(0x1000, arguments="8@counter(%rip)"), symbols={"counter": 0x7008}))
    assert probe.arguments[0].operand == InMemory(0x7008)


WORDS = struct.pack("<QQQ", 0x1000, 0, 0)
MALFORMED: dict[str, tuple[bytes, str]] = {
    "type": (note(0x1000, kind=2), "type 2"),
    "too short": (raw_note(WORDS), "too few"),
    "no words": (raw_note(b""), "too few"),
    "two strings": (raw_note(WORDS + b"provider\0name\0"), "three strings"),
    "unterminated": (raw_note(WORDS + b"provider\0name\0args"), "three strings"),
    "no provider": (note(0x1000, provider=""), "no provider"),
    "no name": (note(0x1000, name=""), "no provider or no name"),
    "not ASCII": (note(0x1000, name="né"), "not ASCII"),
    "something behind": (raw_note(WORDS + b"p\0n\0\0more"), "behind its strings"),
    "argument": (note(0x1000, arguments="8@%rax 8@nonsense"), "unknown symbol"),
    "address": (note(0x2000), "no code"),
    "address 0": (note(0), "no code"),
    "cut off": (note(0x1000)[:-8], "cut off"),
    "cut off in its header": (note(0x1000) + b"\x08\0\0\0\x20\0", "cut off in its header"),
    "huge size": (struct.pack("<III", 8, 0xFFFFFFF0, 3) + b"stapsdt\0", "cut off"),
    "huge name": (struct.pack("<III", 0xFFFFFFF0, 8, 3) + b"stapsdt\0", "cut off"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_note(kind: str) -> None:
    raw, message = MALFORMED[kind]
    with pytest.raises(ProbeError) as e:
        Probes.parse(elf(raw), "file.elf")
    assert message in e.value.message and e.value.where.startswith("file.elf: note at 0x")


@given(st.binary(max_size=96))
def test_no_bytes_do_anything_else(raw: bytes) -> None:
    for notes in (raw, note(0x1000) + raw, raw_note(raw), raw_note(WORDS + raw)):
        try:
            Probes.parse(elf(notes))
        except ProbeError:
            pass


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_damaged_files(at: int, value: int) -> None:
    """Any byte of the file may be another one."""
    data = bytearray(elf(note(0x1000, arguments="8@counter(%rip)"), symbols={"counter": 0x7008}))
    data[at % len(data)] = value
    try:
        Probes.parse(bytes(data))
    except ImageError:
        pass


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        Probes.read(tmp_path / "missing")
    (tmp_path / "text").write_text("no ELF file")
    with pytest.raises(ImageError, match="malformed ELF"):
        Probes.read(tmp_path / "text")


# ---- what the compiler makes ----------------------------------------------------------------------

SOURCE = r"""
#include "sdt.h"
u64 counter = 0x1234;
u64 table[4] = { 10, 20, 30, 40 };
struct { u32 a; u8 b; } pair = { 7, 9 };

/* As sdt.h, with the operand's kind chosen. */
#define FORM(p, n, size, constraint, value) \
	__asm__ volatile(SDT_NOTE(p, n, size "@%0") :: constraint(value) : "memory")

noinline void probes(u64 x, u32 y, s8 z, u64 *p, u64 i)
{
	volatile u64 local = x + 3;

	PROBE(form, none);
	PROBE1(form, immediate, 42);
	PROBE1(form, negative, -5L);
	PROBE4(form, several, x, y, z, p[i]);
	PROBE2(form, memory, counter, local);
	FORM(form, reg64, "8", "r", x);
	FORM(form, reg32, "4", "r", y);
	FORM(form, reg8, "-1", "q", z);
	FORM(form, global, "8", "m", counter);
	FORM(form, member, "1", "m", pair.b);
	FORM(form, element, "8", "m", table[2]);
	FORM(form, indexed, "8", "m", p[i]);
	FORM(form, stack, "8", "m", local);
	for (u64 n = 0; n < 3; n++)
		PROBE1(form, loop, n);
}

__attribute__((naked, used)) void _start(void)
{
	__asm__ volatile("movabsq $0x1122334455667788, %rdi; movl $0x99aabbcc, %esi; movl $-3, %edx");
	__asm__ volatile("leaq table(%rip), %rcx; movl $1, %r8d; call probes; 1: cli; hlt; jmp 1b");
}
"""
SCRIPT = """
ENTRY(_start)
SECTIONS {
  . = 0x100000;
  .text : { KEEP(*(.text .text.*)) }
  .data : { *(.data .data.* .rodata .rodata.* .bss .bss.*) }
  _stapsdt_base = .;
  .note.stapsdt : { KEEP(*(.note.stapsdt)) }
  /DISCARD/ : { *(.comment) *(.eh_frame*) *(.note.gnu*) }
}
"""
X, Y = 0x1122334455667788, 0x99AABBCC
EXPECTED: dict[str, list[tuple[int, ...]]] = {
    "form:none": [()],
    "form:immediate": [(42,)],
    "form:negative": [((1 << 64) - 5,)],
    "form:several": [(X, Y, (1 << 64) - 3, 20)],
    "form:memory": [(0x1234, X + 3)],
    "form:reg64": [(X,)],
    "form:reg32": [(Y,)],
    "form:reg8": [(-3,)],
    "form:global": [(0x1234,)],
    "form:member": [(9,)],
    "form:element": [(30,)],
    "form:indexed": [(20,)],
    "form:stack": [(X + 3,)],
    "form:loop": [(0,), (1,), (2,)],
}


@pytest.mark.parametrize("optimize", ["-O0", "-O2"])
def test_compiled_probes_say_what_the_program_computes(optimize: str, tmp_path: Path) -> None:
    root = project_root()
    place = root / "build" / "tests" / f"sdt{optimize}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "probes.c").write_text(SOURCE)
    (place / "link.ld").write_text(SCRIPT)
    flags = [f for f in BARE_METAL if f != "-O2"]
    script = (place / "link.ld").relative_to(root)
    program = tmp_path / "probes.elf"
    more = [optimize, "-I", "kernels/include", "-Wl,-e,_start", f"-Wl,-T,{script}"]
    compile_with_zig(root, [*flags, *more], [place / "probes.c"], place / "probes.elf")
    (place / "probes.elf").replace(program)
    probes = Probes.read(program)
    assert set(probes.sites) == set(EXPECTED)
    seen: dict[str, list[tuple[int, ...]]] = {}
    with Machine(16 << 20) as m:
        m.boot(Boot(program.read_bytes(), entry="linux64"))
        for probe in probes:

            def hit(m: Machine, address: int, probe: Probe = probe) -> None:
                seen.setdefault(probe.event, []).append(probe.read(m))

            m.probe(probe.address, hit)
        stop = m.run(max_instructions=10_000)
        assert stop.kind is StopKind.DEADLOCK, stop
    assert seen == EXPECTED
