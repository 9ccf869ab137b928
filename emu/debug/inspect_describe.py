"""A handover as a JSON document: `describe`, for all commands."""

from __future__ import annotations

from typing import Any

from emu.debug import inspect_devices
from kho.abi import PAGE_SIZE
from kho.check import Report
from kho.handover import Handover
from kho.image import Image
from luo import Luo, payload_bytes
from luo.sessions import File, Session


def describe(
    handover: Handover, report: Report, *, summary: bool = False, image: Image | None = None
) -> dict[str, Any]:
    """The document of ``inspect --json``. `summary` leaves long lists and digests out."""
    luo = Luo.read(handover)
    preserved = handover.preserved
    payload = payload_bytes(handover)
    unexplained_phys, unexplained_order = handover.unexplained()
    location = handover.location
    metadata = handover.metadata
    document: dict[str, Any] = {}
    if image is not None:
        document["image"] = {"path": str(image.path), "format": image.format}
    document["kho"] = {
        "compatible": handover.compatible,
        "fdt_phys": handover.fdt_phys,
        "fdt_size": handover.fdt_size,
        "found_by": location.found_by or None,
        "radix_root": handover.tree.root,
        "radix_nodes": len(handover.tree.node_phys),
        "tree_bytes": len(handover.tree.node_phys) * PAGE_SIZE,
        "tree_complete": handover.tree_is_whole,
        "scratch": [{"phys": area.phys, "size": area.size} for area in handover.scratch or []],
        "scratch_known": handover.scratch is not None,
        "scratch_phys": location.scratch_phys,
    }
    document["preserved_summary"] = {
        "blocks": len(preserved),
        "pages": preserved.bytes // PAGE_SIZE,
        "bytes": preserved.bytes,
        "payload_bytes": payload,
        "metadata_bytes": preserved.bytes - payload,
        "by_order": {str(order): count for order, count in preserved.count_by_order().items()},
        "unexplained_blocks": len(unexplained_phys),
    }
    if not summary:
        document["preserved"] = [
            {"phys": phys, "order": order}
            for phys, order in zip(preserved.phys.tolist(), preserved.order.tolist(), strict=True)
        ]
        document["unexplained"] = [
            {"phys": phys, "order": order}
            for phys, order in zip(unexplained_phys.tolist(), unexplained_order.tolist(), strict=True)
        ]
    # the first of two sub-trees of one name is the one that a kernel finds
    document["subtrees"] = {s.name: {"phys": s.phys, "size": s.size} for s in reversed(handover.subtrees)}
    document["kexec_metadata"] = metadata and {
        "version": metadata.version,
        "previous_release": metadata.previous_release,
        "kexec_count": metadata.kexec_count,
    }
    document["luo"] = None if luo is None else _describe_luo(handover, luo, summary)
    document["reserve_mem"] = [
        {"name": region.name, "phys": region.phys, "size": region.size} for region in handover.reserve_mem
    ]
    test = handover.kho_test
    document["kho_test"] = test and {
        "folios": test.nr_folios,
        "bytes": test.bytes,
        "csum": test.csum,
        "csum_ok": None if summary else test.csum_ok(handover.reader),
    }
    own = handover.luemu_test
    document["luemu_test"] = own and [{"name": a.name, "bytes": a.size} for a in own.areas]
    document["moment"] = report.moment
    document["violations"] = [violation.to_dict() for violation in report.violations]
    return document


def _describe_luo(handover: Handover, luo: Luo, summary: bool) -> dict[str, Any]:
    files = [file for session in luo.sessions for file in session.files]
    document: dict[str, Any] = {
        "compatible": luo.compatible,
        "phys": luo.phys,
        "liveupdate_num": luo.liveupdate_num,
        "sessions_phys": luo.sessions_phys,
        "flbs_phys": luo.flbs_phys,
        "session_count": len(luo.sessions),
        "file_count": len(files),
        "file_bytes": sum(file.memfd.size for file in files if file.memfd is not None),
    }
    if not summary:
        document["sessions"] = [describe_session(handover, session) for session in luo.sessions]
    flbs = luo.flb_page.flbs if luo.flb_page else []
    document["flbs"] = [{"compatible": flb.compatible, "data": flb.data, "count": flb.count} for flb in flbs]
    if luo.iommu is not None:
        document["iommu"] = inspect_devices.describe_iommu(luo.iommu)
    if luo.pci is not None:
        document["pci"] = inspect_devices.describe_pci(luo.pci)
    return document


def describe_session(handover: Handover, session: Session) -> dict[str, Any]:
    """A session and its files, for JSON."""
    return {"name": session.name, "files": [_describe_file(handover, file) for file in session.files]}


def _describe_file(handover: Handover, file: File) -> dict[str, Any]:
    memfd = file.memfd
    document: dict[str, Any] = {"token": file.token, "compatible": file.compatible, "data": file.data}
    names = ("size", "pos", "seals", "flags", "folios", "sha256")
    if file.iommufd is not None:
        return document | {"iommufd": inspect_devices.describe_iommufd(file.iommufd)}
    if file.vfio is not None:
        return document | {"vfio": inspect_devices.describe_vfio(file.vfio)}
    if memfd is None:
        return document | dict.fromkeys(names)
    values = (memfd.size, memfd.pos, memfd.seals, memfd.flags, memfd.nr_folios, memfd.sha256(handover.reader))
    orders = {str(order): count for order, count in memfd.folio_counts().items()}
    return document | dict(zip(names, values, strict=True)) | {"orders": orders}


__all__ = ["describe", "describe_session"]
