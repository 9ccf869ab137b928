"""Each place inside the engine that the core believes in, moved: the self-check refuses, with one line.

A core is built with one offset of `core.h` or `state.c` changed, which is what an engine looks like whose
structures are laid out differently. It may then crash or run for ever: the line comes all the same.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kernels import build
from tests.test_engine import ROOT, in_process

CORE = next(t for t in build.TARGETS if t.name == "core")
NATIVE = ROOT / "emu" / "native"
NAMED = re.findall(r"^    ((?:UC|CPU|ENV)_\w+) = (0x[0-9a-f]+),", (NATIVE / "core.h").read_text(), re.M)
POINTERS = {"ENV_FPOP", "ENV_FPIP", "ENV_FPDP"}
"""These lie one behind the other, which the compiler checks: they can only be moved together."""
NARROW = {
    "ENV_FPSTT", "ENV_FPUS", "ENV_FPUC", "ENV_FPTAGS", "ENV_FP_FLAGS", "ENV_MXCSR", "ENV_ERROR_CODE",
    "ENV_EXC_IS_INT", "ENV_OLD_EXCEPTION",
}  # fmt: skip
STRUCTURES = {"env": "struct env {", "translation block": "struct tb {", "disassembly": "struct disas {"}
LITERALS = [
    0x12C0, 0x12C8, 0x12D0, 0x12E0, 0x1300, 0x1338, 0x14A0, 0x18B0, 0x1910, 0x1988,
    0x1580, 0x1588, 0x1590, 0x1598, 0x15A0, 0x15B4,
]  # fmt: skip
"""Of `state.c`: the first and the last of each row."""


def refused(tmp_path: Path, file: str, pattern: str, replacement: str) -> str:
    """The line with which a core is refused in which a pattern, which must be there, was replaced."""
    shutil.copytree(NATIVE, tmp_path / "emu" / "native", ignore=shutil.ignore_patterns("*.so"))
    path = tmp_path / "emu" / "native" / file
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.M)
    assert count == 1, f"{pattern!r} is there {count} times"
    path.write_text(text)
    (tmp_path / "build").mkdir()
    (ROOT / "build/zig-cache").mkdir(parents=True, exist_ok=True)
    (tmp_path / "build" / "zig-cache").symlink_to(ROOT / "build" / "zig-cache")
    build.build(tmp_path, CORE)
    done = in_process("", f"emu.engine.__file__ = {str(tmp_path / 'emu' / 'engine.py')!r}")
    assert done.returncode == 3, done
    assert done.stdout.count("\n") == 1 and "2.1.4" in done.stdout, done
    return done.stdout


def moved(tmp_path: Path, name: str, value: str, by: int) -> str:
    return refused(tmp_path, "core.h", rf"^(    {name} = ){value},", rf"\g<1>{int(value, 16) + by:#x},")


def step(name: str) -> int:
    return 4 if name in NARROW else 8


def test_the_list_is_complete() -> None:
    names = {name for name, _ in NAMED}
    assert len(NAMED) >= 25 and names >= NARROW | POINTERS
    for name in names:  # an offset that nothing uses cannot be seen by anyone
        sources = [p for p in NATIVE.iterdir() if p.suffix in (".c", ".h")]
        assert sum(len(re.findall(rf"\b{name}\b", p.read_text())) for p in sources) > 1, name


@pytest.mark.parametrize(
    ("name", "how"),
    [("CPU_CFLAGS_NEXT", "does not end"), ("CPU_EXCEPTION", "signal"), ("ENV_FPUS", "fpu.status")],
)
def test_a_moved_offset(name: str, how: str, tmp_path: Path) -> None:
    assert how in moved(tmp_path, name, dict(NAMED)[name], step(name))


def test_nothing_moved_is_accepted(tmp_path: Path) -> None:
    """The tests here prove something: a core from the same sources elsewhere is accepted."""
    with pytest.raises(AssertionError, match="accepted"):
        refused(tmp_path, "core.h", "^enum stop {", "enum stop {")


@pytest.mark.campaign
@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("name", sorted({name for name, _ in NAMED} - POINTERS))
def test_every_moved_offset(name: str, by: int, tmp_path: Path) -> None:
    moved(tmp_path, name, dict(NAMED)[name], by * step(name))


@pytest.mark.campaign
@pytest.mark.parametrize("what", STRUCTURES)
def test_a_structure_with_another_field(what: str, tmp_path: Path) -> None:
    refused(tmp_path, "core.h", re.escape(STRUCTURES[what]), STRUCTURES[what] + " u64 another;")


@pytest.mark.campaign
@pytest.mark.parametrize("offset", LITERALS, ids=hex)
def test_every_moved_register(offset: int, tmp_path: Path) -> None:
    by = 1 if offset == 0x15B4 else 8  # the last one is a byte
    refused(tmp_path, "state.c", rf"\{{{offset:#x}, ", f"{{{offset + by:#x}, ")
