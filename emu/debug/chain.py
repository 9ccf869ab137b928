"""The kernels of a run, one after the other, and what each of them is booted with.

All of them get the same initramfs. Linux, and any kernel when there are programs to run, is driven by the
project's init and its plan. Without programs the project's own kernels do their built-in work, and find in
/boot/chain what to start next: line g is for kernel g, the path of an image and, where it is not to have the
kernel's own command line, another one. They do that where there is no /init, so it has another name then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from emu.debug.release import Kernel
from emu.errors import ConfigError
from emu.initproto import NextKernel

LINUX_CMDLINE = "console=ttyS0,115200 kho=on liveupdate=on retain_initrd nokaslr panic=-1"
OWN_CMDLINE = "kho=on"
OWN_CMDLINE_PROGRAMS = "console=ttyS0,115200 kho=on liveupdate=on"
INIT, OTHER_INIT = "/init", "/luemu/init"
CHAIN_PATH, IMAGES = "/boot/chain", "/boot"
_LINUX_KERNEL = "/luemu/kernel"


@dataclass(frozen=True)
class Chain:
    """``kernels[g]`` is that of generation g, the last one that of all later generations as well."""

    kernels: Sequence[Kernel]
    updates: int
    cmdline: str = ""
    """added to every command line"""
    programs: bool = False
    """There are programs to run, on the project's kernels too."""
    driven: bool = True
    """by the project's init, and not by a first program of somebody else's"""

    @classmethod
    def open(
        cls,
        old: str | Path,
        new: Sequence[str | Path],
        updates: int,
        symbols: tuple[Path | None, Path | None] = (None, None),
        *,
        cmdline: str = "",
        programs: bool = False,
        driven: bool = True,
        observe: bool = True,
    ) -> Chain:
        """``new``: the next kernel; or several, the kernels of the updates in order. With one, updates
        alternate between old and new if any of the two is the project's; Linux stays at the new one.
        Raises ImageError, ConfigError."""
        first = Kernel.open(old, symbols[0], observe=observe)
        opened: dict[str | Path, Kernel] = {old: first} if symbols[0] == symbols[1] else {}
        following: list[Kernel] = []
        for text in new:
            if text not in opened:
                opened[text] = Kernel.open(text, symbols[1], observe=observe)
            following.append(opened[text])
        if len(following) > 1:
            if updates != len(following):
                raise ConfigError(f"{len(following)} next kernels are given", f"{updates} updates")
            return cls([first, *following], updates, cmdline, programs, driven)
        if first.own or following[0].own:
            pair = (first, following[0])
            return cls([pair[g % 2] for g in range(max(updates, 1) + 1)], updates, cmdline, programs, driven)
        return cls([first, following[0]], updates, cmdline, programs, driven)

    def kernel(self, generation: int) -> Kernel:
        """The kernel of a generation."""
        return self.kernels[min(generation, len(self.kernels) - 1)]

    @cached_property
    def own(self) -> bool:
        """Whether any of them is the project's."""
        return any(k.own for k in self.running)

    @cached_property
    def linux(self) -> bool:
        """Whether any of them is not the project's."""
        return any(not k.own for k in self.running)

    def has_init(self, generation: int) -> bool:
        """Whether a kernel is driven by init."""
        return self.programs or not self.kernel(generation).own

    @property
    def init(self) -> str | None:
        """Where init is in the initramfs; None if no kernel needs it, or the first program is another one."""
        if not self.driven or (not self.linux and not self.programs):
            return None
        return INIT if self.programs or not self.own else OTHER_INIT

    @cached_property
    def running(self) -> list[Kernel]:
        """Those that are to run, each generation's; the last one may run again."""
        return [self.kernel(g) for g in range(min(self.updates, len(self.kernels) - 1) + 1)]

    def command_line(self, generation: int) -> str:
        """Of a kernel, without its generation."""
        if not self.kernel(generation).own:
            other = self.init == OTHER_INIT
            base = f"{LINUX_CMDLINE} rdinit={OTHER_INIT}" if other else LINUX_CMDLINE
        else:
            base = OWN_CMDLINE_PROGRAMS if self.programs else OWN_CMDLINE
        return f"{base} {self.cmdline}".strip()

    @cached_property
    def _different(self) -> list[Kernel]:
        return list(dict.fromkeys(self.kernels))

    # ---- what they find in the initramfs -------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """Images of all kernels that are started by kexec, and /boot/chain."""
        out = {path: kernel.kexec_image for path, kernel in self._images().items()}
        if self.own and self.updates and not self.programs:
            out[CHAIN_PATH] = "".join(f"{line}\n" for line in self._lines()).encode()
        return out

    def next_kernels(self) -> list[NextKernel]:
        """For init's plan."""
        if not self.updates:
            return []
        if not self.own:
            return [NextKernel(_LINUX_KERNEL, self.command_line(1))]
        return [NextKernel(self._path(g), self.command_line(g)) for g in range(1, self.updates + 1)]

    def _images(self) -> dict[str, Kernel]:
        generations = range(1, min(self.updates, len(self.kernels)) + 1)
        return {self._path(g): self.kernel(g) for g in generations}

    def _path(self, generation: int) -> str:
        if not self.own:
            return _LINUX_KERNEL
        kernel = self.kernel(generation)
        name = re.sub(r"[^A-Za-z0-9._-]", "_", kernel.short)
        if "." not in name:
            name += ".bzImage"
        same = [k for k in self._different if k.short == kernel.short]
        return f"{IMAGES}/{name}" if len(same) == 1 else f"{IMAGES}/{same.index(kernel)}-{name}"

    def _lines(self) -> list[str]:
        lines = []
        for g in range(self.updates):
            same = self.command_line(g) == self.command_line(g + 1)
            lines.append(self._path(g + 1) if same else f"{self._path(g + 1)} {self.command_line(g + 1)}")
        return lines


__all__ = ["CHAIN_PATH", "LINUX_CMDLINE", "OWN_CMDLINE", "Chain"]
