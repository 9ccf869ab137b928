"""What `luemu inspect` shows of devices that are handed over: as lines of its tree, and as JSON."""

from __future__ import annotations

from typing import Any

from emu.debug.output import Branch, amount, size
from luo.abi_devices import DEVICE, HWPT, IOAS, IRQ_NAMES, READ, SMALL, VFIO_FLAGS, WRITE, bdf
from luo.devices import PciCore, VfioDevice
from luo.iommu import Iommu, Iommufd, Mapping, Object
from luo.sessions import File

LINES_MAX = 20
KINDS = {IOAS: "ioas", HWPT: "hwpt", DEVICE: "device"}


def rights(prot: int) -> str:
    """As people write them."""
    return ("r" if prot & READ else "-") + ("w" if prot & WRITE else "-")


def draw_iommu(branch: Branch, iommu: Iommu) -> None:
    """Functions, then domains with what they map."""
    branch.add(
        f"unit at {iommu.unit:#x}, root table {iommu.root:#x}, "
        + (
            f"{amount(len(iommu.interrupt_entries), 'interrupt')}"
            if iommu.interrupts
            else "interrupts as they are"
        )
    )
    for source, id in sorted(iommu.devices.items()):
        branch.add(f"function {bdf(source)}: domain {id}")
    for domain in iommu.domains.values():
        line = branch.add(
            f"domain {domain.id}: {size(sum(m.size for m in domain.mappings))} mapped, "
            f"{amount(len(domain.tables), 'table')}, {domain.levels} levels"
        )
        for m in domain.mappings[:LINES_MAX]:
            line.add(f"IOVA {m.iova:#x} → {m.phys:#x}, {size(m.size)}, {rights(m.prot)}")
        if len(domain.mappings) > LINES_MAX:
            line.add(f"and {amount(len(domain.mappings) - LINES_MAX, 'more mapping')} (--json lists all)")


def iommufd_line(iommufd: Iommufd) -> str:
    """Objects by kind, and what is mapped."""
    counts = {kind: sum(o.kind == kind for o in iommufd.objects) for kind in KINDS}
    objects = ", ".join(amount(count, KINDS[kind]) for kind, count in counts.items() if count)
    return f"{objects or 'no objects'}, {amount(len(iommufd.areas), 'area')} with {size(iommufd.mapped)}"


def vfio_line(device: VfioDevice) -> str:
    """Which function, where it is attached, and how it interrupts."""
    flags = "".join(f", {name}" for bit, name in VFIO_FLAGS.items() if device.flags & bit)
    irq = IRQ_NAMES.get(device.irq, f"interrupt {device.irq}")
    return (
        f"{bdf(device.bdf)} [{device.vendor:04x}:{device.device:04x}], object {device.object} in "
        f"{device.table}, {irq}{flags}"
    )


def file_line(file: File) -> str | None:
    """What a file is, if it is one of those that are shown here."""
    if file.iommufd is not None:
        return iommufd_line(file.iommufd)
    return vfio_line(file.vfio) if file.vfio is not None else None


def draw_pci(branch: Branch, core: PciCore) -> None:
    """Functions with what they decode."""
    for f in core.functions:
        what = f"bridge to bus {f.secondary:02x}" if f.bridge else f"class {f.class_:06x}"
        line = branch.add(f"function {bdf(f.bdf)} [{f.vendor:04x}:{f.device:04x}], {what}")
        for number, (bar, length) in f.bars.items():
            line.add(f"BAR {number}: {bar:#x}, {size(length)}")


def describe_pci(core: PciCore) -> dict[str, Any]:
    """For --json."""
    return {
        "phys": core.phys,
        "functions": [
            {
                "function": bdf(f.bdf),
                "vendor": f.vendor,
                "device": f.device,
                "class": f.class_,
                "bridge": f.bridge,
                "secondary": f.secondary,
                "bars": {str(n): list(bar) for n, bar in f.bars.items()},
            }
            for f in core.functions
        ],
    }


def describe_vfio(device: VfioDevice) -> dict[str, Any]:
    """For --json."""
    return {
        "phys": device.phys,
        "function": bdf(device.bdf),
        "vendor": device.vendor,
        "device": device.device,
        "object": device.object,
        "table": device.table,
        "irq": device.irq,
        "flags": device.flags,
        "config": device.config.hex(),
    }


def describe_iommu(iommu: Iommu) -> dict[str, Any]:
    """For --json; numbers as they are, mappings as lists."""
    return {
        "phys": iommu.phys,
        "unit": iommu.unit,
        "root": iommu.root,
        "interrupts": iommu.interrupts,
        "devices": {bdf(source): domain for source, domain in sorted(iommu.devices.items())},
        "interrupt_entries": {str(n): bdf(source) for n, source in iommu.interrupt_entries.items()},
        "domains": [
            {
                "id": domain.id,
                "levels": domain.levels,
                "top": domain.top,
                "tables": domain.tables,
                "bytes": domain.bytes,
                "mappings": [_describe_mapping(m) for m in domain.mappings],
            }
            for domain in iommu.domains.values()
        ],
        "files": iommu.files,
    }


def _describe_mapping(m: Mapping) -> dict[str, Any]:
    return {"iova": m.iova, "phys": m.phys, "size": m.size, "rights": rights(m.prot)}


def describe_iommufd(iommufd: Iommufd) -> dict[str, Any]:
    """For --json."""
    return {
        "phys": iommufd.phys,
        "rlimit_mode": iommufd.rlimit_mode,
        "objects": [_describe_object(o) for o in iommufd.objects],
        "areas": [
            {
                "ioas": area.ioas,
                "iova": area.iova,
                "size": area.size,
                "rights": rights(area.prot),
                "memory": [list(piece) for piece in area.memory],
            }
            for area in iommufd.areas
        ],
        "ranges": [list(r) for r in iommufd.ranges],
    }


def _describe_object(o: Object) -> dict[str, Any]:
    document: dict[str, Any] = {"id": o.id, "kind": KINDS.get(o.kind, str(o.kind))}
    if o.kind == HWPT:
        document |= {"ioas": o.parent, "domain": o.arg, "automatic": bool(o.flags)}
    elif o.kind == DEVICE:
        document |= {"hwpt": o.parent, "function": bdf(o.arg)}
    elif o.kind == IOAS:
        document["huge_pages"] = not o.flags & SMALL
    return document
