"""The emulated PC: what hardware does, and nothing else.

`emu` knows processors, memory, buses and devices. It imports nothing from `kho` or `luo` and holds
no policy of any kernel. `emu.cli` and `emu.debug` are the tools on top, which may import everything
and which nothing imports.

    from emu import Machine
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["Machine"]


def __getattr__(name: str) -> Any:
    # Decoding a dump must not need an engine, so the machine is imported when it is asked for.
    if name == "Machine":
        from emu.machine import Machine

        return Machine
    raise AttributeError(f"module 'emu' has no attribute {name!r}")
