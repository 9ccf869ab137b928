"""Kernels for tests: the project's two releases, and ones that differ from them in one thing only."""

from __future__ import annotations

from pathlib import Path

from kernels import build


def skewed(compatible: str, of: str = "new") -> Path:
    """The bzImage of a release that is another one only in its version of one format, "kho-v9"; its ELF
    file lies beside it."""
    root = build.project_root()
    name = f"skew-{of}-{compatible}"
    place = root / "build" / "tests" / name
    place.mkdir(parents=True, exist_ok=True)
    header = place / "release.h"
    macro = f"RELEASE_{compatible.partition('-')[0].upper()}_COMPATIBLE"
    text = f'#include "../../../kernels/releases/{of}.h"\n#undef {macro}\n#define {macro} "{compatible}"\n'
    if not header.is_file() or header.read_text() != text:
        header.write_text(text)
    output = f"build/tests/{name}/{name}.elf"
    target = build.kernel(name, f"../{header.relative_to(root).as_posix()}", output)
    made = build.build(root, target)
    assert made is not None
    return made.with_suffix(".bzImage")
