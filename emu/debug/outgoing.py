"""What a kernel that is about to jump hands over, by its own variables: nothing in memory leads there yet."""

from __future__ import annotations

import re

from emu.debug import guest, kexec
from emu.debug.guest import UnknownLayout
from emu.debug.release import Kernel
from emu.debug.symbols import Symbols
from emu.debug.view import View
from emu.machine import Machine
from kho.abi import SCRATCH_COUNT_MAX
from kho.setup_data import ScratchList


def image(m: Machine, kernel: Kernel) -> kexec.Image:
    """The image that the kernel is about to jump to. Raises kexec.UnknownImage."""
    registers = m.cpus[0].registers()
    address = registers["rdi"]
    for probe in kernel.probes.at("kexec:jump"):
        if probe.address == registers["rip"]:
            address = probe.read(m, registers)[0]
            break
    return kexec.read(m, address, kernel.layouts if kernel.own else None)


def root_fdt(m: Machine, kernel: Kernel) -> int | None:
    """Where the root FDT is, 0 if there is none; None if it must be searched for."""
    if not kernel.own:
        return None
    try:
        view = View(m, kernel)
        at = view.member(view.symbol("kho_out"), "kho_out", "fdt")
        return view.phys(at) if at else 0
    except UnknownLayout:
        return None


def last_of_kho(console: bytes) -> str:
    """What a kernel said last of KHO: why it is off."""
    found = re.findall(rb"KHO: ([^\r\n]*)", console)
    return f" ({found[-1].decode('ascii', 'backslashreplace')})" if found else ""


def scratch(m: Machine, symbols: Symbols | None) -> ScratchList | None:
    """Where the list of scratch areas is; None if it cannot be told."""
    if symbols is None:
        return None
    table, count = symbols.address("kho_scratch"), symbols.address("kho_scratch_cnt")
    if table is None or count is None:
        return None
    try:
        areas = int.from_bytes(guest.read(m, count, 4), "little")
        phys = guest.translate(m, guest.u64(m, table))
    except guest.NotMapped:
        return None
    return ScratchList(phys, 16 * areas) if 0 < areas <= SCRATCH_COUNT_MAX else None


__all__ = ["image", "last_of_kho", "root_fdt", "scratch"]
