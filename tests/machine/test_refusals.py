"""More that the self-check must notice before a machine may run (tests/test_engine.py has the rest)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kernels.build import project_root
from tests.test_engine import in_process, library, refused, selftest


def test_version_bytes_of_the_library_are_looked_at(tmp_path: Path) -> None:
    """A copy whose uc_version says 2.1.3: the constant is in its code as 0x020104ff, or in parts."""
    data = library().read_bytes()
    candidates = [(n, data.count(n)) for n in (b"\xff\x04\x01\x02", b"\x00\x04\x01\x02")]
    for needle, count in candidates:
        at = -1
        for _ in range(min(count, 20)):
            at = data.index(needle, at + 1)
            if data[at - 1] != 0xB8:  # mov eax, imm32
                continue
            changed = bytearray(data)
            changed[at + 1] = 3
            (tmp_path / "libunicorn.so.2").write_bytes(changed)
            refused(selftest({"LIBUNICORN_PATH": str(tmp_path)}), "2.1.3", "2.1.4")
            return
    pytest.fail(f"the version is not where it was: {candidates}")


def test_missing_file_itself(tmp_path: Path) -> None:
    refused(selftest({"LIBUNICORN_PATH": str(tmp_path / "no" / "libunicorn.so.2")}), "libunicorn.so.2")


def test_truncated_library(tmp_path: Path) -> None:
    data = library().read_bytes()
    for size in (4096, 64):
        (tmp_path / "libunicorn.so.2").write_bytes(data[:size])
        refused(selftest({"LIBUNICORN_PATH": str(tmp_path)}), "cannot be loaded")


@pytest.mark.parametrize("by", [-8, 8])
@pytest.mark.parametrize("name", ["UC_CPU", "UC_TCG", "CPU_ENV_PTR", "CPU_UC", "CPU_TO_ENV", "ENV_FEATURES"])
def test_shifted_by_one_word(name: str, by: int) -> None:
    """Where it is used: emu.cpu takes some of them by name when it is imported."""
    done = in_process("", f"emu.engine.{name} += {by}\nimport emu.cpu\nemu.cpu.{name} = emu.engine.{name}")
    assert done.returncode == 3, done
    assert done.stdout.count("\n") == 1, done


def test_a_failing_check_is_one_line_for_every_user() -> None:
    """Whoever makes the first machine of a process gets the same error, each time."""
    code = (
        "import emu.engine\nemu.engine.VERSION = (9, 9, 9)\nfrom emu import Machine\n"
        "from emu.errors import UnsupportedHost\n"
        "for _ in range(2):\n    try:\n        Machine(1 << 20)\n    except UnsupportedHost as e:\n        print(e.kind)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project_root(), capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["unsupported-host"] * 2, done
