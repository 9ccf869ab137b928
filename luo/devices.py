"""PCI functions as they are handed over: the FLB ``pci-luemu-v1`` of the PCI core, and files
``vfio-pci-luemu-v1``. Findings are INV-21 and INV-20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kho.abi import PAGE_SIZE
from kho.handover import Handover
from luo.abi_devices import (
    DEVICE,
    IRQ_NAMES,
    PCI,
    PCI_BARS,
    PCI_BRIDGE,
    PCI_COMPATIBLE,
    PCI_FUNCTION,
    PCI_FUNCTIONS,
    VFIO,
    VFIO_FLAGS,
    bdf,
    checksum,
)
from luo.flb import read_record
from luo.iommu import Iommufd


@dataclass(frozen=True)
class PciFunction:
    """struct pci_luemu_function. `bars`: (register, size) of those that exist, by number."""

    bdf: int
    vendor: int
    device: int
    flags: int
    class_: int
    header: int
    secondary: int
    bars: dict[int, tuple[int, int]]

    @property
    def bridge(self) -> bool:
        """Above a function that goes over."""
        return bool(self.flags & PCI_BRIDGE)


@dataclass
class PciCore:
    """struct pci_luemu_ser."""

    phys: int
    functions: list[PciFunction] = field(default_factory=list)


@dataclass(frozen=True)
class VfioDevice:
    """struct vfio_luemu_ser."""

    phys: int
    bdf: int
    vendor: int
    device: int
    irq: int
    flags: int
    object: int
    table: int
    config: bytes


def read_pci(handover: Handover, phys: int) -> PciCore | None:
    """Decode the record; None when there is none."""
    findings = handover.findings
    record = read_record(handover, phys, PCI_COMPATIBLE, "the record of the PCI core")
    if record is None:
        return None
    _, data = record
    _, count, reserved, more = PCI.unpack_from(data)
    if count > PCI_FUNCTIONS or reserved or any(more):
        findings.add("INV-21", f"the record of the PCI core has {count} functions, or a reserved field", phys)
        return None
    core = PciCore(phys)
    last = -1
    for number in range(count):
        head = PCI_FUNCTION.unpack_from(data, PCI.size + number * PCI_FUNCTION.size)
        reserved |= head[7]
        bars, sizes = head[8 : 8 + PCI_BARS], head[8 + PCI_BARS :]
        known = {n: (bar, size) for n, (bar, size) in enumerate(zip(bars, sizes, strict=True)) if size}
        source, vendor, device, flags, class_, header, secondary = head[:7]
        core.functions.append(PciFunction(source, vendor, device, flags, class_, header, secondary, known))
        if head[0] <= last:
            findings.add("INV-21", f"function {bdf(head[0])} is not where it belongs", phys)
        last = head[0]
    if reserved or any(data[PCI.size + PCI_FUNCTIONS * PCI_FUNCTION.size :]):
        findings.add("INV-21", "a reserved field in the record of the PCI core is set", phys)
    return core


def read_vfio(handover: Handover, phys: int, owner: int) -> VfioDevice | None:
    """Decode the record; None when there is none."""
    findings = handover.findings
    if not phys or phys % PAGE_SIZE or not handover.reader.contains(phys, PAGE_SIZE):
        findings.add("INV-20", f"the data handle {phys:#x} of a VFIO device is not a page in RAM", phys)
        return None
    handover.own_page(owner, phys, lost="INV-20", what="the record of a VFIO device")
    data = handover.reader.bytes(phys, VFIO.size)
    total, source, vendor, device, reserved, irq, flags, object, table, more, config = VFIO.unpack(data)
    if total != checksum(data[8:]):
        findings.add("INV-20", "the checksum of the record of a VFIO device is wrong", phys)
        return None
    if reserved or any(more) or irq not in IRQ_NAMES or flags & ~sum(VFIO_FLAGS):
        findings.add("INV-20", f"the record of {bdf(source)} has a value that is not known", phys)
    return VfioDevice(phys, source, vendor, device, irq, flags, object, table, config)


def compare(
    handover: Handover, core: PciCore | None, vfio: Sequence[VfioDevice], iommufds: Sequence[Iommufd]
) -> None:
    """Every VFIO device is a function that the PCI core hands over, and attached in one of the iommufds."""
    findings = handover.findings
    functions = {f.bdf: f for f in core.functions} if core else {}
    for device in vfio:
        function = functions.get(device.bdf)
        if function is None or (function.vendor, function.device) != (device.vendor, device.device):
            findings.add("INV-20", f"the PCI core does not hand over {bdf(device.bdf)}", device.phys)
        objects = [
            o
            for iommufd in iommufds
            for o in iommufd.objects
            if (o.kind, o.id, o.parent, o.arg) == (DEVICE, device.object, device.table, device.bdf)
        ]
        if len(objects) != 1:
            findings.add("INV-20", f"{bdf(device.bdf)} is not attached to object {device.table}", device.phys)
    if len({d.bdf for d in vfio}) != len(vfio):
        findings.add("INV-20", "two VFIO devices are the same function")
    alone = {f.bdf for f in functions.values() if not f.bridge} - {d.bdf for d in vfio}
    for source in sorted(alone):
        findings.add("INV-21", f"{bdf(source)} goes over, and no file has it", core.phys if core else None)


__all__ = ["PciCore", "PciFunction", "VfioDevice", "compare", "read_pci", "read_vfio"]
