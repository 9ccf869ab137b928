"""Whether a kernel will take a handover, told before the jump: `luemu check IMAGE --for KERNEL`.

A kernel takes versions that match exactly and no others (KHO and LUO promise no compatibility): a root FDT
of another version makes it boot cold, and LUO state of another version is lost with all sessions. What it
accepts is read from its ELF file.

How a refusal shows depends on whose kernel it is. The project's lose as little as possible: files of another
version are refused one by one (EIO), LUO state of another version makes /dev/liveupdate refuse to be opened.
Linux 7.2 panics at LUO state of another version, and one file that it has no handler for makes it refuse
the device, and with it every session.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emu.debug.output import Branch, Paint, amount, clean, size
from emu.debug.release import Kernel
from emu.errors import ImageError
from kho import fdt as fdt_format
from kho.abi import PAGE_SIZE, PROP_BLOB_SIZE, PROP_MEMORY_MAP
from kho.errors import FormatError, KhoError, NotFound
from kho.fdt import Fdt
from kho.handover import Handover
from kho.memory import PhysicalMemory, Reader
from luo.abi import MEMFD_COMPATIBLE
from luo.state import Luo

_PREFIX = b"kho-v"
BOOTS_COLD = "it boots cold, as if nothing had been handed over"
_LUO_REFUSED = {True: "/dev/liveupdate cannot be opened (EIO)", False: "it panics in early boot"}
_FILE_REFUSED = {
    True: "EIO when it is retrieved",
    False: "/dev/liveupdate cannot be opened (EIO), so that no session can be retrieved",
}
"""By whether the kernel is one of the project's."""


@dataclass(frozen=True)
class Lost:
    """Something that the next kernel would not get. ``bytes`` is None where nobody can tell."""

    what: str
    bytes: int | None


@dataclass(frozen=True)
class Refused:
    """Something that the next kernel finds and does not take, and how that shows."""

    what: str
    reaction: str


@dataclass
class Prediction:
    """``written`` are the versions in the handover, ``accepts`` those that the kernel takes."""

    kernel: str
    release: str
    accepts: dict[str, tuple[str, ...]]
    written: dict[str, str] = field(default_factory=dict)
    adopts: bool = True
    accepted: list[str] = field(default_factory=list)
    """sessions that will be there, with all or some of their files"""
    refused: list[Refused] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all of it arrives."""
        return self.adopts and not self.lost

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kernel": self.kernel,
            "release": self.release,
            "accepts": {kind: list(versions) for kind, versions in self.accepts.items()},
            "written": self.written,
            "adopts": self.adopts,
            "accepted": self.accepted,
            "refused": [{"what": item.what, "reaction": item.reaction} for item in self.refused],
            "lost": [{"what": item.what, "bytes": item.bytes} for item in self.lost],
        }

    def draw(self, tree: Branch, paint: Paint) -> None:
        """As lines below an image."""
        version = clean(self.written["kho"])
        takes = ", ".join(self.accepts["kho"])
        who = clean(f"{self.kernel} ({self.release})" if self.release else self.kernel)
        if self.ok:
            tree.add(paint("green", f"{who} accepts {takes}: it will adopt this handover"))
            return
        if self.adopts:
            lines = tree.add(paint("red", f"{who} accepts {takes}: it will adopt this handover, but lose"))
        else:
            message = f"{who} accepts {takes} and this is {version}: it will boot cold and lose"
            lines = tree.add(paint("red", message))
        for item in self.lost:
            lines.add(clean(item.what) + ("" if item.bytes is None else f": {size(item.bytes)}"))
        for refused in self.refused:
            tree.add(f"it will refuse {clean(refused.what)}: {refused.reaction}")
        if self.accepted and self.lost:
            tree.add(f"it will have {clean(', '.join(self.accepted))}")


def accepted(kernel: Kernel) -> Prediction:
    """What is known before the handover is read. Raises ImageError for a kernel that does not tell."""
    accepts = kernel.accepts()
    if "kho" not in accepts:
        message = "nothing says which versions of KHO it accepts: its ELF file (vmlinux) is needed beside it"
        raise ImageError(message, str(kernel.path))
    return Prediction(kernel.short, kernel.release, accepts)


def predict(kernel: Kernel, handover: Handover) -> Prediction:
    """For a handover of the version that is known here. Raises ImageError."""
    found = accepted(kernel)
    luo = Luo.read(handover)
    found.written["kho"] = handover.compatible
    if luo is not None:
        found.written["luo"] = luo.compatible
    found.adopts = handover.compatible in found.accepts["kho"]
    if not found.adopts:
        found.refused.append(Refused(f"the handover, of version {handover.compatible}", BOOTS_COLD))
        if handover.tree_is_whole:
            what = amount(sum(1 << o for o in handover.preserved.order.tolist()), "page")
            found.lost.append(Lost(f"all memory that is preserved, {what}", handover.preserved.bytes))
        found.lost += _contents(handover)
        found.lost += _sessions(luo)
        return found
    if luo is not None and luo.compatible not in found.accepts.get("luo", ()):
        found.refused.append(Refused(f"LUO state of version {luo.compatible}", _LUO_REFUSED[kernel.own]))
        found.lost += _sessions(luo) or [Lost(f"LUO state of version {luo.compatible}", None)]
    elif luo is not None:
        _predict_files(found, luo, kernel.own)
    return found


def _predict_files(found: Prediction, luo: Luo, own: bool) -> None:
    unknown = [(s, f) for s in luo.sessions for f in s.files if not _takes_file(found, f.compatible)]
    for session, file in unknown:
        what = f'file {file.token:#x} of session "{session.name}", of version {file.compatible}'
        found.refused.append(Refused(what, _FILE_REFUSED[own]))
        if own:
            found.lost.append(Lost(what, None if file.memfd is None else file.memfd.size))
    if unknown and not own:
        found.lost += _sessions(luo)
    else:
        found.accepted += [f'session "{session.name}"' for session in luo.sessions]


def _takes_file(found: Prediction, compatible: str) -> bool:
    family = MEMFD_COMPATIBLE.partition("-")[0]
    return not compatible.startswith(f"{family}-") or compatible in found.accepts.get(family, ())


def _contents(handover: Handover) -> list[Lost]:
    out = [Lost(f"reserve_mem region {r.name}", r.size) for r in handover.reserve_mem]
    if handover.kho_test is not None:
        out.append(Lost(f"kho_test, {amount(handover.kho_test.nr_folios, 'folio')}", handover.kho_test.bytes))
    if handover.luemu_test is not None:
        out += [Lost(f"luemu_test {area.name}", area.size) for area in handover.luemu_test.areas]
    return out


def _sessions(luo: Luo | None) -> list[Lost]:
    out = []
    for session in luo.sessions if luo is not None else ():
        total = sum(f.memfd.size for f in session.files if f.memfd is not None)
        out.append(Lost(f'session "{session.name}", {amount(len(session.files), "file")}', total))
    return out


def predict_unknown(kernel: Kernel, memory: PhysicalMemory, fdt: int | None) -> Prediction:
    """For a handover of a version that is not known here: only its root FDT is looked at. Raises
    ImageError, and KhoError if there is none."""
    found = accepted(kernel)
    root = _find_root(Reader(memory), fdt).root
    versions = [text for text in root.compatible() if text.startswith(_PREFIX.decode())]
    found.written["kho"] = ", ".join(versions) or ", ".join(root.compatible()) or "nothing"
    found.adopts = any(version in found.accepts["kho"] for version in root.compatible())
    if not found.adopts:
        found.refused.append(Refused(f"the handover, of version {found.written['kho']}", BOOTS_COLD))
        found.lost.append(Lost("all memory that is preserved", None))
        for node in root.children:
            try:
                found.lost.append(Lost(f"sub-tree {node.name}", node.u64(PROP_BLOB_SIZE)))
            except KhoError:
                found.lost.append(Lost(f"sub-tree {node.name}", None))
    return found


def _find_root(reader: Reader, fdt: int | None) -> Fdt:
    """The root FDT at an address, or the only one in memory."""
    if fdt is not None:
        return _root(reader.bytes(fdt, PAGE_SIZE), f"{fdt:#x}")
    magic = np.frombuffer(fdt_format.MAGIC.to_bytes(4, "big"), "<u4")[0]
    found: list[Fdt] = []
    for _, view in reader.scan():
        whole = len(view) // PAGE_SIZE * PAGE_SIZE
        first = np.ascontiguousarray(view[:whole].reshape(-1, PAGE_SIZE)[:, :4]).view("<u4")[:, 0]
        for row in np.flatnonzero(first == magic).tolist():
            page = view[row * PAGE_SIZE : (row + 1) * PAGE_SIZE].tobytes()
            if _PREFIX in page:
                try:
                    found.append(_root(page, ""))
                except FormatError:
                    continue
    if len(found) != 1:
        raise NotFound(f"there are {len(found)} root FDTs in the image: say which with --fdt")
    return found[0]


def _root(page: bytes, where: str) -> Fdt:
    fdt = Fdt.parse(page)
    if not any(text.startswith(_PREFIX.decode()) for text in fdt.root.compatible()):
        raise FormatError("this is no root FDT of KHO", where)
    fdt.root.u64(PROP_MEMORY_MAP)
    return fdt


__all__ = ["Lost", "Prediction", "accepted", "predict", "predict_unknown"]
