"""The whole LUO state of a handover: `Luo.read(handover)`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from kho.abi import PAGE_SIZE
from kho.block import BlockChain
from kho.handover import Handover
from luo import devices, iommu
from luo.abi import LUO_COMPATIBLE, LUO_SER, LUO_SUBTREE
from luo.abi_devices import IOMMU_COMPATIBLE, PCI_COMPATIBLE
from luo.devices import PciCore, read_pci
from luo.flb import FlbPage, read_page, text
from luo.iommu import Iommu, read_iommu
from luo.memfd import Memfd
from luo.sessions import File, Session, read_sessions


@dataclass
class Luo:
    """struct luo_ser and what hangs on it. What is wrong with it is in the handover's findings."""

    phys: int
    compatible: str
    liveupdate_num: int
    sessions_phys: int
    flbs_phys: int
    sessions: list[Session] = field(default_factory=list)
    chain: BlockChain | None = None
    flb_page: FlbPage | None = None
    iommu: Iommu | None = None
    pci: PciCore | None = None

    @classmethod
    def read(cls, handover: Handover) -> Luo | None:
        """Decode the sub-tree "LUO"; None when there is none or nothing of it can be read.

        May be called again: the first result is kept, because decoding claims memory.
        """
        if LUO_SUBTREE not in handover.decoded:
            handover.decoded[LUO_SUBTREE] = cls._read(handover)
        luo = handover.decoded[LUO_SUBTREE]
        return luo if isinstance(luo, cls) else None

    @classmethod
    def _read(cls, handover: Handover) -> Luo | None:
        subtree = handover.subtree(LUO_SUBTREE)
        if subtree is None or handover.bare or not handover.reader.contains(subtree.phys, subtree.size):
            return None
        findings = handover.findings
        if subtree.size < LUO_SER.size:
            findings.add(
                "INV-14", f"the LUO state has {subtree.size} bytes instead of {LUO_SER.size}", subtree.phys
            )
            return None
        raw, number, sessions_phys, flbs_phys = LUO_SER.unpack(handover.blob(subtree, LUO_SER.size))
        compatible = text(raw.partition(b"\0")[0])
        luo = cls(subtree.phys, compatible, number, sessions_phys, flbs_phys)
        if compatible != LUO_COMPATIBLE:
            findings.add(
                "INV-14", f'the LUO state is compatible with "{compatible}", not "{LUO_COMPATIBLE}"', luo.phys
            )
            return luo
        if number == 0:
            findings.add("INV-14", "the live update number is 0", luo.phys)
        luo.flb_page = read_page(handover, flbs_phys)
        for flb in luo.flb_page.flbs if luo.flb_page else ():
            if flb.compatible == IOMMU_COMPATIBLE:
                luo.iommu = read_iommu(handover, flb.data)
            elif flb.compatible == PCI_COMPATIBLE:
                luo.pci = read_pci(handover, flb.data)
        luo.sessions, luo.chain = read_sessions(handover, sessions_phys)
        files = luo.files
        iommufds = [file.iommufd for file in files if file.iommufd]
        if iommufds or luo.iommu is not None:
            iommu.compare(handover, luo.iommu, iommufds)
        devices.compare(handover, luo.pci, [file.vfio for file in files if file.vfio], iommufds)
        return luo

    @property
    def files(self) -> list[File]:
        """Of all sessions."""
        return [file for session in self.sessions for file in session.files]

    @property
    def memfds(self) -> Iterator[tuple[Session, File, Memfd]]:
        """The files of all sessions that are memory."""
        for session in self.sessions:
            for file in session.files:
                if file.memfd is not None:
                    yield session, file, file.memfd

    @property
    def understood(self) -> bool:
        """Whether the state has a version that is decoded."""
        return self.compatible == LUO_COMPATIBLE


def payload_bytes(handover: Handover) -> int:
    """Bytes preserved for their contents: folios of memfds and of kho_test, areas of luemu_test, and
    reserve_mem regions.

    What is preserved beyond that is the price of preserving: records, arrays, blocks, blobs.
    """
    total = sum(region.size for region in handover.reserve_mem)
    if handover.kho_test is not None and handover.kho_test.complete:
        total += handover.kho_test.bytes
    if handover.luemu_test is not None:
        total += handover.luemu_test.bytes
    luo = Luo.read(handover)
    for _, _, memfd in luo.memfds if luo else ():
        known = memfd.folio_order >= 0
        total += int((np.int64(PAGE_SIZE) << memfd.folio_order[known]).sum())
    return total


def pack_state(number: int, sessions_phys: int, flbs_phys: int, compatible: str = LUO_COMPATIBLE) -> bytes:
    """The 32-byte struct luo_ser."""
    return LUO_SER.pack(compatible.encode("ascii"), number, sessions_phys, flbs_phys)
