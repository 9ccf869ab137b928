"""Hatchling build hook: compile the native core and the guest programs into the wheel.

What is compiled and how is in `kernels/build.py`; this file only calls it and tags the wheel. On a host that
cannot run the machine (anything but Linux on x86-64 with glibc) nothing is compiled and the wheel is a pure
one: decoding and checking work there, running says why it cannot.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The core is linked against glibc 2.17's symbol versions (see kernels/build.py), which is what this tag says.
WHEEL_TAG = "py3-none-manylinux_2_17_x86_64"


def host_runs_the_machine() -> bool:
    """Whether this host is one that the native core supports."""
    return (
        sys.platform == "linux"
        and platform.machine() in ("x86_64", "AMD64")
        and platform.libc_ver()[0] == "glibc"
        and sys.maxsize > 2**32
    )


class LuemuBuildHook(BuildHookInterface[Any]):
    """Compile before the wheel is put together; the same for `pip install .` and `pip install -e .`."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what the wheel needs and set its tag. `version` is "standard" or "editable"."""
        if not host_runs_the_machine():
            self.app.display_warning(
                "luemu: this is not Linux on x86-64 with glibc; installing without the native core: "
                "`luemu inspect` and `luemu check` work, `luemu run` does not"
            )
            return
        root = Path(self.root)
        sys.path.insert(0, str(root))  # kernels/build.py needs nothing but the standard library and ziglang
        try:
            from kernels import build
        finally:
            sys.path.remove(str(root))
        build.build_all(build.project_root())
        build_data["pure_python"] = False
        build_data["tag"] = WHEEL_TAG
