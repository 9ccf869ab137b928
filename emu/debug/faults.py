"""What can be made to go wrong with devices in an update, for `luemu run --fault NAME`.

Each is a mistake that a kernel could make and that its maintainers fear; the project's kernels make it on
demand (`break=CLASS`, kernels/kernel/breakage.c). The run has to fail then, and to say what happened to which
page, by which device, in which phase.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.errors import ConfigError


@dataclass(frozen=True)
class Fault:
    """``breaks``: the kernels' class. ``start``: added to the receiver's command. ``irq``: the receiver has
    to be driven by interrupts."""

    what: str
    breaks: str
    start: str = ""
    irq: bool = False


_OVER_KERNEL = "--iova 0x23a00000"
"""Addresses of the device that are, without remapping, those of the kernel that release old starts in a
machine of 576 MiB: what the device writes back to its ring, it writes over that kernel."""
FAULTS: dict[str, Fault] = {
    "iommu-state": Fault("the state of the IOMMU is not handed over, and the device is", "iommu-state"),
    "iommu-off": Fault(
        "the IOMMU is switched off at the shutdown, and the device runs on", "iommu-off", _OVER_KERNEL
    ),
    "iotlb": Fault("memory is taken from the device, and the IOTLB is not told", "iotlb", start="--unmap"),
    "bus-master": Fault("a device that is not handed over stays a bus master", "bus-master"),
    "interrupt": Fault("an interrupt that comes during the update is lost", "interrupt", irq=True),
}


def fault(name: str) -> Fault:
    """By name. Raises ConfigError."""
    if name not in FAULTS:
        raise ConfigError(f"is none of {', '.join(FAULTS)}", f"fault {name}")
    return FAULTS[name]


__all__ = ["FAULTS", "Fault", "fault"]
