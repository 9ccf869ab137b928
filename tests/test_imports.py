"""The layers, read from the imports: `emu` knows hardware only, `kho` and `luo` need no machine, nothing
but the command line imports the tools."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("emu", "kho", "luo", "kernels", "tests", "benchmarks")


def imports(path: Path) -> set[str]:
    """Our own modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] in OURS}


def below(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


LAYERS = {
    "emu": ("emu",),
    "emu/devices": ("emu",),
    "kho": ("kho",),
    "luo": ("kho", "luo"),
    "kernels": ("kernels",),
}


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_go_down_only(folder: str) -> None:
    files = sorted((ROOT / folder).glob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            assert below(name, *LAYERS[folder]), f"{path} imports {name}"
            if path.name != "cli.py":
                tools = below(name, "emu.debug", "emu.cli")
                assert not tools or path.name == "__main__.py", f"{path} imports the tools"


MAY_KNOW = ("emu.devices", "emu.clock", "emu.bus", "emu.dma", "emu.errors", "emu.memory")


def test_devices_know_no_machine() -> None:
    """A device sees its state, the access and the tick; the clock and the bus that it is given."""
    for path in sorted((ROOT / "emu/devices").glob("*.py")):
        for name in imports(path):
            assert below(name, *MAY_KNOW), f"{path} imports {name}"


def test_the_decoder_imports_no_engine() -> None:
    """Nor the packages that only a machine needs: dumps are read on any host."""
    for package in ("kho", "luo"):
        for path in (ROOT / package).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names]
                    if isinstance(node, ast.ImportFrom):
                        names = [node.module or ""]
                    assert not {n.split(".")[0] for n in names} & {"unicorn", "capstone", "ctypes"}, path


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text("import emu.cpu, os\ndef f():\n    from luo import check\n    from kho.fdt import Node\n")
    assert imports(file) == {"emu.cpu", "luo", "luo.check", "kho.fdt", "kho.fdt.Node"}
