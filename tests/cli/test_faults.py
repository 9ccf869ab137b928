"""A guest that crashes is shown with symbol, source line and the disassembly around."""

from __future__ import annotations

import contextlib
import json
import re

import pytest

from emu.cli import main
from emu.debug import guest
from emu.debug.symbols import Symbols
from tests.machine.guest import CODE, assemble, flat

MARKED = re.compile(r"^=> 0x[0-9a-f]{16}  (.+?)  <run_action\+0x[0-9a-f]+>$", re.M)


def lines_before_and_after(text: str) -> tuple[int, int]:
    lines = [line for line in text.splitlines() if re.match(r"(=>|  ) 0x[0-9a-f]{16}  ", line)]
    at = next(i for i, line in enumerate(lines) if line.startswith("=>"))
    return at, len(lines) - at - 1


@pytest.mark.parametrize(
    ("what", "instruction", "head"),
    [
        ("triple", "int3", "a fault could not be delivered"),
        ("fault-delivering", "ud2", "a fault could not be delivered"),
        # the guest handles this one itself, leaves an epitaph in memory and switches off
        ("pagefault", "mov qword ptr [rax + 0x123456], 1", "vector 14, error 0x2, cr2 0x8000123456"),
    ],
)  # fmt: skip
def test_where_the_guest_faulted(
    what: str, instruction: str, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["selftest", f"do={what}"]) == 1
    out = capsys.readouterr().out
    assert head in out
    assert re.search(r"0x[0-9a-f]+ run_action\+0x[0-9a-f]+ \(action\.c:\d+\)", out), out
    marked = MARKED.search(out)
    assert marked is not None and marked[1] == instruction, out
    assert lines_before_and_after(out) == (4, 5)
    assert out.endswith("not ok\n")
    assert main(["selftest", "--json", f"do={what}"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False and MARKED.search(document["epitaph"])


def test_a_guest_that_passes_leaves_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--json", "only=acpi"]) == 0
    assert json.loads(capsys.readouterr().out)["epitaph"] == ""
    assert main(["selftest", "do=nothing"]) == 1
    assert "the guest did not come to the end of its tests" in capsys.readouterr().out


CODE_TEXT = "push rbp\nmov rbp, rsp\n1: jmp 1b\nud2\nnop\nret"


def test_disassembly_around_an_address() -> None:
    with flat(CODE_TEXT) as m:
        symbols = Symbols({"f": CODE, "far": CODE + 0x10000})
        at = CODE + len(assemble("push rbp\nmov rbp, rsp"))
        lines = guest.disassemble(m, at, symbols)
        assert [line.split("  ", 1)[1].split()[0] for line in (x[2:] for x in lines)][:4] == [
            "push", "mov", "jmp", "ud2"
        ]  # fmt: skip
        assert lines[2].startswith(f"=> {at:#018x}") and lines[2].endswith("<f+0x4>")
        # without a symbol nothing tells where instructions before begin
        assert guest.disassemble(m, at, None)[0].startswith("=> ")
        # an address inside an instruction: what is decoded from the function's beginning does not lead there
        assert guest.disassemble(m, CODE + 2, symbols)[0].startswith("=> ")
        # a function's first instruction has nothing before it
        assert guest.disassemble(m, CODE, symbols)[0].startswith("=> ")


def test_disassembly_where_there_is_no_code() -> None:
    with flat("nop") as m:
        assert guest.disassemble(m, 1 << 46, None) == [f"=> {1 << 46:#018x}  (not mapped)"]
        for address in (1 << 47, 1 << 63, (1 << 64) - (1 << 47) - 1):  # not canonical
            assert "(not mapped)" in guest.disassemble(m, address, Symbols({"f": 1 << 62}))[0]
        for address in (0, (1 << 47) - 1, (1 << 64) - (1 << 47), (1 << 64) - 1):
            with contextlib.suppress(guest.NotMapped):  # canonical, mapped or not
                assert guest.translate(m, address) >= 0
        m.memory.write(CODE, bytes.fromhex("060606"), by="test")
        assert "not an instruction: 06 06 06" in guest.disassemble(m, CODE, None)[0]
        # the last bytes before memory that is not mapped
        m.memory.write(0x3FFFFE, b"\x90\x90", by="test")
        assert len(guest.disassemble(m, 0x3FFFFE, None)) >= 2
