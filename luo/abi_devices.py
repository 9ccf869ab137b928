"""Constants and layouts of what is handed over about devices: this project's formats (docs/abi-devices.md).

The guest's neighbour of this file is ``luo/guest/abi_devices.h``. All integers are little-endian.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

SUM_FACTOR: Final = 0x100_0000_01B3

# --- struct iommu_luemu_ser: the FLB of DMA remapping, one page ---------------------------------------------
IOMMU_COMPATIBLE: Final = "iommu-luemu-v1"
IOMMU: Final = struct.Struct("<QIIIIQQQQQ64s")
"""checksum, number of domains, devices, files, reserved, unit, CAP, ECAP, root, interrupts, reserved"""
IOMMU_SIZE: Final = 4096
IOMMU_DOMAIN: Final = struct.Struct("<IIQQQ")  # id, levels, top, tables, bytes mapped
IOMMU_DOMAINS: Final = 64
IOMMU_DEVICE: Final = struct.Struct("<HHI")  # bdf, reserved, domain
IOMMU_DEVICES: Final = 128
IOMMU_FILES: Final = 64
IRTA_SIZE: Final = 7  # low bits of the interrupt table's address: 256 entries

# --- tables of VT-d (D51397, chapter 9), as far as the kernels write them -----------------------------------
PRESENT: Final = 1
PAGE_BIT: Final = 1 << 7
ADDRESS: Final = (1 << 48) - 4096
VERIFY_SOURCE: Final = 1 << 18  # upper half of an interrupt entry

# --- struct iommufd_luemu_ser: a file -----------------------------------------------------------------------
IOMMUFD_COMPATIBLE: Final = "iommufd-luemu-v1"
IOMMUFD: Final = struct.Struct("<QQIIIIII16s")
"""checksum, size, number of objects, areas, extents, ranges, rlimit mode, reserved, reserved"""
IOAS, HWPT, DEVICE = 1, 2, 3
OBJECT_DTYPE: Final = np.dtype(
    [(name, "<u4") for name in ("id", "kind", "parent", "flags", "arg", "reserved")]
)
AREA_DTYPE: Final = np.dtype(
    [("iova", "<u8"), ("size", "<u8"), ("ioas", "<u4"), ("prot", "<u4"), ("first", "<u4"), ("count", "<u4")]
)
EXTENT_DTYPE: Final = np.dtype([("phys", "<u8"), ("size", "<u8")])
RANGE_DTYPE: Final = np.dtype([("start", "<u8"), ("last", "<u8"), ("ioas", "<u4"), ("kind", "<u4")])
AUTOMATIC: Final = 1  # flag of a HWPT
SMALL: Final = 2  # flag of an IOAS
READ, WRITE = 1, 2
ALLOWED: Final = 2  # kind of a range

# --- struct pci_luemu_ser: the FLB of the PCI core, one page ------------------------------------------------
PCI_COMPATIBLE: Final = "pci-luemu-v1"
PCI: Final = struct.Struct("<QII48s")  # checksum, number of functions, reserved, reserved
PCI_SIZE: Final = 4096
PCI_FUNCTIONS: Final = 32
PCI_FUNCTION: Final = struct.Struct("<HHHHIBBH6Q6Q")
"""bdf, vendor, device, flags, class, header, secondary bus, reserved, BARs, their sizes"""
PCI_BARS: Final = 6
PCI_BRIDGE: Final = 1  # flag

# --- struct vfio_luemu_ser: a file --------------------------------------------------------------------------
VFIO_COMPATIBLE: Final = "vfio-pci-luemu-v1"
VFIO: Final = struct.Struct("<QHHHHIIII24s256s")
"""checksum, bdf, vendor, device, reserved, irq, flags, device object, HWPT, reserved, configuration space"""
VFIO_CONFIG: Final = 256
IRQ_NAMES: Final = {0: "INTx", 1: "MSI", 5: "no interrupt"}
VFIO_FLAGS: Final = {1: "masked", 2: "pin off", 4: "made up for", 8: "can be reset"}


def checksum(data: bytes) -> int:
    """Of everything behind the checksum itself: over 64-bit words."""
    total = 0
    for (word,) in struct.iter_unpack("<Q", data):
        total = (total ^ word) * SUM_FACTOR & (1 << 64) - 1
    return total


def bdf(number: int) -> str:
    """Bus, slot and function as people write them."""
    return f"{number >> 8:02x}:{number >> 3 & 31:02x}.{number & 7}"
