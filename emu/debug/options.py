"""What is to be run, for `emu.debug.update.Update`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.errors import ConfigError
from emu.traffic import TrafficSpec

MAX_INSTRUCTIONS = 50_000_000_000
"""Default of --max-instructions: about a minute; a whole update of a Linux takes 2.5 thousand million."""


@dataclass
class Options:
    """What to run. Paths are the host's; a kernel may be one of the project's releases, by name. Several
    kernels in ``then`` are those of further updates, and there are as many updates as kernels."""

    old: Path | str
    new: Path | str
    then: Sequence[Path | str] = ()
    old_symbols: Path | None = None
    new_symbols: Path | None = None
    memory: int = 512 << 20
    cmdline: str = ""
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    files: Sequence[tuple[Path, str]] = ()
    programs: Sequence[str] = ()
    """of the project, by name, to be put into /bin"""
    libraries: bool = True
    updates: int = 1
    init: Path | None = None
    """the first program, instead of the project's"""
    initramfs: Path | None = None
    """with programs to run: what they find beside them; else the whole file system"""
    incoming: Path | None = None
    """a recorded handover; then ``new`` starts on it"""
    interactive: bool = False
    raw: bool = False
    strict_memory: bool = False
    max_instructions: int = MAX_INSTRUCTIONS
    devices: Sequence[str] = ()
    """what the machine has beyond a plain PC (docs/devices.md)"""
    traffic: TrafficSpec | None = None
    """what is at the other end of its network cable"""
    traffic_at: str | None = None
    """id of the phase that starts it"""
    at: Sequence[tuple[str, str, Path]] = ()
    """(what, when, file): what is "save" or "dump", when a moment, phase id or instruction number"""

    @property
    def commands(self) -> bool:
        """Whether there is something to do for the project's init."""
        return bool(self.before or self.after or self.interactive)

    @property
    def driven(self) -> bool:
        """Whether the project's init is the first program, where there is one."""
        return self.init is None and (self.initramfs is None or self.commands)

    @property
    def has_programs(self) -> bool:
        """Whether the kernels have user space."""
        return self.commands or not self.driven or self.incoming is not None


def split_command(text: str) -> list[str]:
    """A command line as words, like a shell splits it but run without one. Raises ConfigError."""
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise ConfigError(f"{e}", text) from None
    if not words:
        raise ConfigError("is empty", "command")
    return words


__all__ = ["MAX_INSTRUCTIONS", "Options", "split_command"]
