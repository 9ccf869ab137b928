"""The guests: programs and kernels that run inside the machine, and where their built images are."""

from __future__ import annotations

from pathlib import Path

BIN_DIR = Path(__file__).resolve().parent / "bin"


def binary(name: str) -> Path:
    """Path of the built guest `name` ("init", "selftest.elf", …).

    Raises FileNotFoundError, saying how to build it, if this installation has none.
    """
    path = BIN_DIR / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: guests are built when luemu is installed (pip install .), "
            "or in a source tree by `python -m kernels.build`"
        )
    return path
