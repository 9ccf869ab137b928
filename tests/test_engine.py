"""The core refuses an engine that it does not fit, with one line and exit status 3, and never crashes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def library() -> Path:
    spec = importlib.util.find_spec("unicorn")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "lib" / "libunicorn.so.2"


def selftest(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "emu", "selftest", "-q", "only=acpi"],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 3, done
    assert done.stdout == "", done
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_the_real_library_is_accepted() -> None:
    done = selftest({"LIBUNICORN_PATH": str(library().parent)})
    assert done.returncode == 0, done


def test_missing_library(tmp_path: Path) -> None:
    refused(selftest({"LIBUNICORN_PATH": str(tmp_path)}), "libunicorn.so.2", "pip install")


@pytest.mark.parametrize("content", [b"", b"no library at all\n" * 100])
def test_no_library_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "libunicorn.so.2").write_bytes(content)
    refused(selftest({"LIBUNICORN_PATH": str(tmp_path)}), "cannot be loaded")


SYMBOLS = [
    "x86_cpu_tlb_fill_x86_64", "translator_loop_x86_64", "helper_fsqrt_x86_64", "uc_version", "uc_hook_add",
]  # fmt: skip


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_missing_symbol(tmp_path: Path, symbol: str) -> None:
    """A copy of the library in which one name of the dynamic symbol table is another."""
    data = library().read_bytes()
    name = b"\0" + symbol.encode() + b"\0"
    assert name in data
    renamed = name[:-2] + b"~\0"
    (tmp_path / "libunicorn.so.2").write_bytes(data.replace(name, renamed))
    refused(selftest({"LIBUNICORN_PATH": str(tmp_path)}))


IN_PROCESS = """
import sys
{setup}
import emu.engine
{change}
from emu.errors import UnsupportedHost
try:
    emu.engine.library()
except UnsupportedHost as e:
    print(str(e))
    sys.exit(3)
print("accepted")
"""


def in_process(setup: str, change: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IN_PROCESS.format(setup=setup, change=change)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


OFFSETS = ["UC_CPU", "UC_TCG", "CPU_ENV_PTR", "CPU_UC", "CPU_TO_ENV"]


@pytest.mark.parametrize("name", OFFSETS)
@pytest.mark.parametrize("by", [-16, -8, 8, 16, 4096])
def test_shifted_offset(name: str, by: int) -> None:
    done = in_process("", f"emu.engine.{name} += {by}")
    assert done.returncode == 3, done
    assert done.stdout.count("\n") == 1 and "2.1.4" in done.stdout, done


def test_other_version() -> None:
    done = in_process("", "emu.engine.VERSION = (2, 1, 3)")
    assert done.returncode == 3 and "2.1.4" in done.stdout and done.stdout.count("\n") == 1, done


def test_unicorn_imported_first() -> None:
    done = in_process("import unicorn", "")
    assert done.returncode == 3 and "import emu first" in done.stdout and done.stdout.count("\n") == 1, done


def test_core_not_built() -> None:
    """Without the native core the message says how to get it."""
    done = in_process("", "from pathlib import Path\nemu.engine.__file__ = '/nonexistent/emu/engine.py'")
    assert done.returncode == 3 and "pip install ." in done.stdout and done.stdout.count("\n") == 1, done


def test_without_change_it_is_accepted() -> None:
    """The negative tests above prove something: the same process without a change is accepted."""
    done = in_process("", "")
    assert done.returncode == 0 and done.stdout == "accepted\n", done
