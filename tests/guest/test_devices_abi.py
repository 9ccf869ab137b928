"""Formats of what is handed over about DMA remapping, described twice: the kernels' debug information against
`luo.abi_devices`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from kernels import build
from luo import abi_devices as abi
from tests.guest.abi_contract import Contract

ROOT = build.project_root()
HEADER = ROOT / "luo" / "guest" / "abi_devices.h"


def members(dtype: np.dtype[Any], renamed: dict[str, str]) -> dict[str, tuple[int, int]]:
    """What the host's arrays say of a structure."""
    assert dtype.fields is not None
    return {renamed.get(name, name): (f[1], f[0].itemsize) for name, f in dtype.fields.items()}


AT = abi.IOMMU.size
AT_DEVICES = AT + abi.IOMMU_DOMAINS * abi.IOMMU_DOMAIN.size
AT_FILES = AT_DEVICES + abi.IOMMU_DEVICES * abi.IOMMU_DEVICE.size
MEMBERS = {
    "iommu_luemu_domain": {
        "id": (0, 4), "levels": (4, 4), "top": (8, 8), "nr_tables": (16, 8), "bytes": (24, 8),
    },
    "iommu_luemu_device": {"bdf": (0, 2), "reserved": (2, 2), "domain": (4, 4)},
    "iommu_luemu_ser": {
        "checksum": (0, 8), "nr_domains": (8, 4), "nr_devices": (12, 4), "nr_files": (16, 4),
        "reserved": (20, 4), "unit": (24, 8), "capabilities": (32, 8), "extended": (40, 8), "root": (48, 8),
        "interrupts": (56, 8), "reserved2": (64, 64), "domains": (AT, AT_DEVICES - AT),
        "devices": (AT_DEVICES, AT_FILES - AT_DEVICES), "files": (AT_FILES, 8 * abi.IOMMU_FILES),
        "reserved3": (AT_FILES + 8 * abi.IOMMU_FILES, abi.IOMMU_SIZE - AT_FILES - 8 * abi.IOMMU_FILES),
    },
    "iommufd_luemu_ser": {
        "checksum": (0, 8), "size": (8, 8), "nr_objects": (16, 4), "nr_areas": (20, 4), "nr_extents": (24, 4),
        "nr_ranges": (28, 4), "rlimit_mode": (32, 4), "reserved": (36, 4), "reserved2": (40, 16),
    },
    "iommufd_luemu_object": members(abi.OBJECT_DTYPE, {}),
    "iommufd_luemu_area": members(abi.AREA_DTYPE, {"first": "first_extent", "count": "nr_extents"}),
    "iommufd_luemu_extent": members(abi.EXTENT_DTYPE, {}),
    "iommufd_luemu_range": members(abi.RANGE_DTYPE, {}),
    "pci_luemu_function": {
        "bdf": (0, 2), "vendor": (2, 2), "device": (4, 2), "flags": (6, 2), "class": (8, 4),
        "header": (12, 1), "secondary": (13, 1), "reserved": (14, 2), "bar": (16, 48), "size": (64, 48),
    },
    "pci_luemu_ser": {
        "checksum": (0, 8), "nr_functions": (8, 4), "reserved": (12, 4), "reserved2": (16, 48),
        "functions": (abi.PCI.size, abi.PCI_FUNCTIONS * abi.PCI_FUNCTION.size),
        "reserved3": (3648, 448),
    },
    "vfio_luemu_ser": {
        "checksum": (0, 8), "bdf": (8, 2), "vendor": (10, 2), "device": (12, 2), "reserved": (14, 2),
        "irq": (16, 4), "flags": (20, 4), "object": (24, 4), "table": (28, 4), "reserved2": (32, 24),
        "config": (56, abi.VFIO_CONFIG),
    },
}  # fmt: skip
SIZES = {
    "iommu_luemu_domain": abi.IOMMU_DOMAIN.size,
    "iommu_luemu_device": abi.IOMMU_DEVICE.size,
    "iommu_luemu_ser": abi.IOMMU_SIZE,
    "iommufd_luemu_ser": abi.IOMMUFD.size,
    "iommufd_luemu_object": abi.OBJECT_DTYPE.itemsize,
    "iommufd_luemu_area": abi.AREA_DTYPE.itemsize,
    "iommufd_luemu_extent": abi.EXTENT_DTYPE.itemsize,
    "iommufd_luemu_range": abi.RANGE_DTYPE.itemsize,
    "pci_luemu_function": abi.PCI_FUNCTION.size,
    "pci_luemu_ser": abi.PCI_SIZE,
    "vfio_luemu_ser": abi.VFIO.size,
}
CONSTANTS = {
    "IOMMU_LUEMU_DOMAINS": abi.IOMMU_DOMAINS,
    "IOMMU_LUEMU_DEVICES": abi.IOMMU_DEVICES,
    "IOMMU_LUEMU_FILES": abi.IOMMU_FILES,
    "IOMMUFD_LUEMU_IOAS": abi.IOAS,
    "IOMMUFD_LUEMU_HWPT": abi.HWPT,
    "IOMMUFD_LUEMU_DEVICE": abi.DEVICE,
    "IOMMUFD_LUEMU_AUTO": abi.AUTOMATIC,
    "IOMMUFD_LUEMU_SMALL": abi.SMALL,
    "IOMMUFD_LUEMU_READ": abi.READ,
    "IOMMUFD_LUEMU_WRITE": abi.WRITE,
    "IOMMUFD_LUEMU_ALLOWED": abi.ALLOWED,
}
VERSIONS = {"iommu_compatible": abi.IOMMU_COMPATIBLE, "iommufd_compatible": abi.IOMMUFD_COMPATIBLE}
OF_FUNCTIONS = {
    "PCI_LUEMU_FUNCTIONS": abi.PCI_FUNCTIONS,
    "PCI_LUEMU_BARS": abi.PCI_BARS,
    "PCI_LUEMU_BRIDGE": abi.PCI_BRIDGE,
    "VFIO_LUEMU_INTX": 0,
    "VFIO_LUEMU_MSI": 1,
    "VFIO_LUEMU_NO_IRQ": 5,
    "VFIO_LUEMU_MASKED": 1,
    "VFIO_LUEMU_INTX_OFF": 2,
    "VFIO_LUEMU_MAKE_UP": 4,
    "VFIO_LUEMU_RESET": 8,
    "VFIO_LUEMU_CONFIG": abi.VFIO_CONFIG,
}
CONTRACT = Contract(HEADER, "devices_abi", MEMBERS, SIZES, CONSTANTS, {}, VERSIONS)


@pytest.mark.parametrize("release", ["old", "new"])
def test_the_release_says_the_same(release: str) -> None:
    CONTRACT.check_image(build.build_all(ROOT, [f"kernel-{release}"])[f"kernel-{release}"])


def test_all_of_the_header_is_compared() -> None:
    text = HEADER.read_text()
    assert set(MEMBERS) == set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE))
    assert set(CONSTANTS | OF_FUNCTIONS) == set(re.findall(r"^\s*([A-Z][A-Z0-9_]+) =", text, re.MULTILINE))
    assert set(abi.IRQ_NAMES) == {OF_FUNCTIONS[f"VFIO_LUEMU_{n}"] for n in ("INTX", "MSI", "NO_IRQ")}
    assert f"{abi.SUM_FACTOR:#x}UL" in text


def test_the_checksum_depends_on_every_bit() -> None:
    data = bytes(range(64))
    wanted = abi.checksum(data)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert abi.checksum(bytes(damaged)) != wanted, f"bit {bit}"
