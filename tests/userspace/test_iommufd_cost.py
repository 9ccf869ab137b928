"""What it costs to hand over a device with a gigabyte mapped in pages of 2 MiB, in guest instructions.

Counted is what the kernels do for devices between freezing and the end of the last retrieve; what they would
do anyway (finding ACPI tables) is not, nor is the end of the session.
"""

from __future__ import annotations

from emu.debug.view import View
from emu.machine import Machine
from luo.state import Luo
from tests.userspace import iommufd as i
from tests.userspace import rig
from tests.userspace.agents import MIB
from tests.userspace.test_iommufd import (
    ATTACHED,
    IOVA,
    OPENED,
    PRESERVE,
    RETRIEVED,
    Step,
    compare,
    steps_spec,
)

SIZE = 1024 * MIB
AT = 0x1000_0000_0000
BAR = 100_000
HUGEPAGE = 14
COUNTED = {
    0: ("iommufd_freeze", "vfio_freeze", "iommu_shutdown"),
    1: ("iommu_early_init", "iommu_init", "pci_luo_start", "pci_luo_incoming", "pci_luo_scanned",
        "iommufd_own", "vfio_own", "iommufd_retrieve", "vfio_retrieve"),
}  # fmt: skip
NOT_COUNTED = ("acpi_find_tables",)
FINISH = ("iommufd_finish", "vfio_finish", "pci_flb_finish", "iommu_flb_finish")


def measure(r: rig.Rig, generation: int, names: tuple[str, ...], into: dict[str, int]) -> None:
    """Instructions of each function with all that it calls, summed over its calls."""

    def entered(name: str, m: Machine) -> None:
        view = View(m, rig.kernel(r.spec.kernels[generation]))
        back = int.from_bytes(view.read(m.registers()["rsp"], 8), "little")
        start = m.instructions

        def returned(machine: Machine, address: int) -> None:
            into[name] = into.get(name, 0) + machine.instructions - start
            machine.unprobe(address, returned)

        m.probe(back, returned)

    for name in names:
        r.at(generation, name, lambda m, name=name: entered(name, m))  # type: ignore[misc]


def test_a_gigabyte() -> None:
    old: list[Step] = [
        ("open", 0), ("create 0 s", 0), ("memfd 1 2", 0), (f"truncate 1 {SIZE}", 0), (i.mmap(1, SIZE, AT), 0),
        (f"madvise {AT} {SIZE} {HUGEPAGE}", 0), *OPENED, (i.ioas_map(2, 1, AT, SIZE, IOVA), 0), *ATTACHED,
        *PRESERVE,
    ]  # fmt: skip
    cost: dict[str, int] = {}
    with rig.Rig(steps_spec(old, [*RETRIEVED, ("finish 0", 0)], memory=SIZE + 1024 * MIB)) as r:
        measure(r, 0, COUNTED[0], cost)
        r.run_to(0, "kexec:jump")
        luo = Luo.read(r.handover(0))
        assert luo is not None and luo.iommu is not None
        (domain,) = luo.iommu.domains.values()
        assert sum(m.size for m in domain.mappings) == SIZE and len(domain.tables) == 3, "pages of 2 MiB"
        measure(r, 1, COUNTED[1] + NOT_COUNTED + FINISH, cost)
        outcome = r.finish().check()
        compare(outcome, "after", [*RETRIEVED, ("finish 0", 0)])
    total = sum(cost[name] for names in COUNTED.values() for name in names) - cost["acpi_find_tables"]
    for name, count in cost.items():
        print(f"{name}: {count:,}")
    print(f"together: {total:,}; finishing: {sum(cost[name] for name in FINISH):,}")
    assert total < BAR
