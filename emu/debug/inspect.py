"""`luemu inspect IMAGE`: decode a handover and show it, as a tree for people or as JSON.

The decoders are `kho` and `luo`; this file finds out what the image is, puts them together and prints the
result. `describe` makes the JSON document, which other commands use as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu import saved
from emu.boot import RAM, Range
from emu.debug import inspect_devices
from emu.debug.output import (
    Branch,
    Paint,
    UsageError,
    amount,
    clean,
    fail,
    parse_number,
    print_json,
    print_tree,
    size,
)
from emu.debug.struct_pages import StructPages
from emu.errors import EmuError
from kho.abi import PAGE_SIZE
from kho.check import MOMENTS, Report, Segment, Violation
from kho.errors import ImageError, KhoError, NotFound
from kho.handover import Handover
from kho.image import Image, MappedMemory, open_image
from kho.memory import PhysicalMemory, Reader
from kho.setup_data import ScratchArea, ScratchList
from luo import Luo, payload_bytes
from luo.abi import SEAL_NAMES
from luo.abi_devices import IOMMU_COMPATIBLE, PCI_COMPATIBLE
from luo.check import check
from luo.sessions import File, Session

NEIGHBOUR_BYTES_MAX = 1 << 20
SUFFIXES = (".zst", ".raw", ".pruned", ".img", ".bin", ".elf", ".core", ".dump", ".dmp", ".mem")
LINES_MAX = 20  # of one kind in the tree, unless --all

EXAMPLE = """example:
  luemu inspect dump.raw.zst
  luemu inspect --json --summary vmcore
  luemu inspect --fdt 0x495000 --scratch 0x7b2c000,48 memory.img
"""


@dataclass
class Neighbour:
    """What the .json beside an image says about it (the shape of recorded handovers). Everything is
    optional.
    """

    path: Path
    fdt: int | None = None
    scratch_list: int | None = None
    scratch: list[ScratchArea] = field(default_factory=list)
    e820: list[Range] = field(default_factory=list)
    moment: str | None = None
    old_scratch: list[ScratchArea] | None = None
    segments: list[Segment] | None = None
    control_pages: list[int] | None = None
    earlier_scratch: list[ScratchArea] | None = None
    received_number: int | None = None
    contents: dict[str, str] = field(default_factory=dict)
    """sha256 of each file at J, keyed "session/0xtoken" """
    struct_pages: StructPages | None = None

    @property
    def ram(self) -> list[tuple[int, int]]:
        """(start, end) of what the memory map calls RAM."""
        return [(r.start, r.start + r.size) for r in self.e820 if r.kind == RAM]


@dataclass
class Opened:
    """A decoded image with the options that were used."""

    image: Image
    handover: Handover
    moment: str
    neighbour: Neighbour | None = None

    def check(self) -> Report:
        """Verify the invariants, with what the image cannot tell taken from the .json beside it."""
        n = self.neighbour or Neighbour(self.image.path)
        pages = n.struct_pages.states(self.handover.reader) if n.struct_pages is not None else None
        report = check(
            self.handover, self.moment, segments=n.segments, control_pages=n.control_pages,
            old_scratch=n.old_scratch, earlier_scratch=n.earlier_scratch, page_states=pages,
            received_number=n.received_number,
        )  # fmt: skip
        if n.contents and report.moment in ("K", "F"):
            self._compare_contents(report, n.contents)
        return report

    def _compare_contents(self, report: Report, then: dict[str, str]) -> None:
        """INV-26, as far as the digests at J tell."""
        luo = Luo.read(self.handover)
        compared = False
        for session in luo.sessions if luo is not None else ():
            for file in session.files:
                key = f"{session.name}/{file.token:#x}"
                digest = file.memfd.sha256(self.handover.reader) if file.memfd is not None else None
                if digest is None or key not in then:
                    continue  # what is missing breaks other rows
                compared = True
                if digest != then[key]:
                    message = f"the contents of {key} are not what they were at J"
                    phys = file.memfd.phys if file.memfd is not None else None
                    report.violations.append(Violation("INV-26", report.moment, message, phys))
        if compared:
            report.checked = sorted([*report.checked, "INV-26"], key=lambda id: int(id[4:]))
            report.not_checked.pop("INV-26", None)


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "inspect",
        help="decode the handover in a memory image",
        description="Decode the handover in a raw image, .zst, ELF core, FDT blob or saved machine.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.set_defaults(func=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that all commands on images have."""
    parser.add_argument("image", metavar="IMAGE", help="raw image, .zst, ELF core, FDT blob or saved machine")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--summary", action="store_true", help="leave long lists out")
    parser.add_argument("--fdt", metavar="ADDR", help="address of the root FDT (found by itself otherwise)")
    parser.add_argument(
        "--scratch", metavar="ADDR,LEN", help="where the list of scratch areas is, and its bytes"
    )
    parser.add_argument(
        "--moment", default="auto", metavar="J|K|F|auto",
        help="J: the old kernel jumps, K: the new one adopts memory, F: it has freed the rest",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the subcommand: 0 when it could decode, 2 when not."""
    try:
        opened = open_handover(args)
        report = opened.check()
        if args.json:
            print_json(describe(opened.handover, report, summary=args.summary, image=opened.image))
        else:
            print_tree(draw(opened, report, summary=args.summary), sys.stdout)
    except (KhoError, UsageError) as error:
        return fail(error, args.json)
    return 0


# --- finding out what the image is --------------------------------------------------------------------------


def parse_options(args: argparse.Namespace) -> tuple[int | None, ScratchList | None, str]:
    """(fdt, scratch, moment) of the command line; UsageError."""
    fdt = None if args.fdt is None else parse_number(args.fdt, "--fdt")
    scratch = None
    if args.scratch is not None:
        parts = args.scratch.split(",")
        if len(parts) != 2:
            raise UsageError(f'"{args.scratch}" is not ADDR,LEN', "--scratch")
        scratch = ScratchList(*(parse_number(part, "--scratch") for part in parts))
    moment = args.moment if args.moment == "auto" else args.moment.upper()
    if moment not in (*MOMENTS, "auto"):
        raise UsageError(f'"{args.moment}" is none of {", ".join(MOMENTS)}, auto', "--moment")
    return fdt, scratch, moment


def open_handover(args: argparse.Namespace) -> Opened:
    """Open the image of the command line and decode it. KhoError, UsageError."""
    fdt, scratch, moment = parse_options(args)
    image = open_any(Path(args.image))
    neighbour = read_neighbour(Path(args.image))
    if neighbour is not None and neighbour.moment and moment == "auto":
        moment = neighbour.moment
    args.moment_used = moment  # for the report when decoding fails
    if image.blob is not None:
        return Opened(image, Handover.from_blob(image.blob), moment, neighbour)
    memory = image.memory
    if memory is None:
        raise ImageError("the image has no memory", str(image.path))
    given: ScratchList | Sequence[ScratchArea] | None = scratch
    if neighbour is not None:
        if isinstance(memory, MappedMemory) and neighbour.ram and image.format.endswith("raw"):
            limited = memory.limited(neighbour.ram)
            memory = limited if limited.ranges else memory
        fdt = neighbour.fdt if fdt is None else fdt
        # at K the image itself says where the list is, and that is what has to be checked
        if scratch is None and neighbour.moment == "J":
            given = _neighbour_scratch(Reader(memory), neighbour)
    try:
        return Opened(image, Handover.read(memory, fdt, given, search=True), moment, neighbour)
    except NotFound as error:  # not at an address: in the whole file
        error.where = error.where or str(image.path)
        raise


def open_memory(args: argparse.Namespace) -> tuple[PhysicalMemory, int | None]:
    """Memory of the image of the command line, and where its root FDT is, if that is given. KhoError."""
    path = Path(args.image)
    memory = open_any(path).memory
    if memory is None:
        raise ImageError("the image has no memory", str(path))
    neighbour = read_neighbour(path)
    fdt = parse_options(args)[0]
    return memory, fdt if fdt is not None or neighbour is None else neighbour.fdt


def open_any(path: Path) -> Image:
    """A saved machine, or one of the formats that the decoder knows. KhoError."""
    if not saved.is_saved(path):
        return open_image(path)
    try:
        return Image(path, "saved-machine", memory=saved.SavedMemory(saved.read(path)))
    except EmuError as error:
        raise ImageError(error.message, error.where) from None


def _neighbour_scratch(reader: Reader, neighbour: Neighbour) -> ScratchList | Sequence[ScratchArea] | None:
    if not neighbour.scratch:
        return None
    if neighbour.scratch_list is not None and reader.contains(
        neighbour.scratch_list, 16 * len(neighbour.scratch)
    ):
        return ScratchList(neighbour.scratch_list, 16 * len(neighbour.scratch))
    return neighbour.scratch


def read_neighbour(path: Path) -> Neighbour | None:
    """The .json beside an image, if there is one that describes a handover; others are ignored."""
    for candidate in _neighbour_names(path.resolve()):
        try:
            if not candidate.is_file() or candidate.stat().st_size > NEIGHBOUR_BYTES_MAX:
                continue
            document = json.loads(candidate.read_text("utf-8"))
            if isinstance(document, dict) and ("kho_fdt_pa" in document or "scratch" in document):
                return _neighbour(candidate, document)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError,
                RecursionError) as error:  # fmt: skip
            print(f"luemu: {candidate} is ignored: {clean(str(error))}", file=sys.stderr)
    return None


def _neighbour_names(path: Path) -> list[Path]:
    names = [path.with_name(path.name + ".json")]
    while path.suffix in SUFFIXES and path.stem:
        path = path.with_suffix("")
        names.append(path.with_name(path.name + ".json"))
    return names


def _neighbour(path: Path, document: dict[str, Any]) -> Neighbour:
    found = Neighbour(path)
    if document.get("kho_fdt_pa") is not None:
        found.fdt = _integer(document["kho_fdt_pa"])
    if document.get("scratch_list_pa") is not None:
        found.scratch_list = _integer(document["scratch_list_pa"])
    found.scratch = [ScratchArea(_integer(a), _integer(s)) for a, s in document.get("scratch") or []]
    if document.get("old_scratch") is not None:
        found.old_scratch = [ScratchArea(_integer(a), _integer(s)) for a, s in document["old_scratch"]]
    if document.get("segments") is not None:
        found.segments = [Segment(_integer(a), _integer(s)) for a, s in document["segments"]]
        found.control_pages = [_integer(a) for a in document.get("control_pages") or []]
    if document.get("earlier_scratch") is not None:
        found.earlier_scratch = [
            ScratchArea(_integer(a), _integer(s)) for a, s in document["earlier_scratch"]
        ]
    if document.get("received_number") is not None:
        found.received_number = _integer(document["received_number"])
    found.contents = {str(k): str(v) for k, v in (document.get("expected_sha256") or {}).items()}
    if document.get("struct_pages") is not None:
        found.struct_pages = StructPages.parse(document["struct_pages"])
    found.e820 = [
        Range(_integer(e["addr"]), _integer(e["size"]), _integer(e["type"]))
        for e in document.get("e820") or []
    ]
    when = str(document.get("moment") or document.get("when") or "")
    if when in MOMENTS:
        found.moment = when
    elif "machine_kexec" in when:
        found.moment = "J"
    elif "kho_populate" in when or "kho_memory_init" in when:
        found.moment = "K"
    return found


def _integer(value: Any) -> int:
    number = int(value, 0) if isinstance(value, str) else int(value)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} is no address or size")
    return number


# --- JSON ---------------------------------------------------------------------------------------------------


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


# --- for people ---------------------------------------------------------------------------------------------


def draw(opened: Opened, report: Report, *, summary: bool = False) -> Branch:
    """The handover as a tree of lines."""
    handover = opened.handover
    paint = Paint(sys.stdout)
    tree = Branch(f"{paint('bold', clean(str(opened.image.path)))} ({opened.image.format})")
    where = "" if handover.fdt_phys is None else f" at {handover.fdt_phys:#x}"
    kho = tree.add(f"{paint('bold', 'KHO')} {handover.compatible}, FDT{where}, {handover.fdt_size} bytes")
    metadata = handover.metadata
    if metadata is not None:
        kho.add(
            f'kexec-metadata: from "{clean(metadata.previous_release)}", kexec count {metadata.kexec_count}'
        )
    if handover.bare:
        kho.add(f"tree root {handover.tree.root:#x} (a bare FDT: no memory to look at)")
    else:
        _draw_memory(kho, handover)
    subtrees = kho.add(amount(len(handover.subtrees), "sub-tree"))
    for subtree in handover.subtrees:
        subtrees.add(f"{clean(subtree.name)} at {subtree.phys:#x}, {subtree.size} bytes")
    for region in handover.reserve_mem:
        tree.add(f"reserve_mem {clean(region.name)} at {region.phys:#x}, {size(region.size)}")
    if handover.kho_test is not None:
        test = handover.kho_test
        verdict = {
            True: "checksum right",
            False: paint("red", "checksum wrong"),
            None: "checksum not computed",
        }
        known = None if summary else test.csum_ok(handover.reader)
        tree.add(f"kho_test: {amount(test.nr_folios, 'folio')}, {size(test.bytes)}, {verdict[known]}")
    for area in handover.luemu_test.areas if handover.luemu_test is not None else ():
        tree.add(f"luemu_test {clean(area.name)}: {size(area.size)}")
    luo = Luo.read(handover)
    if luo is not None:
        _draw_luo(tree, handover, luo, paint, summary)
    phys, order = handover.unexplained()
    if len(phys):
        lines = tree.add(paint("yellow", f"{amount(len(phys), 'block')} that no known format explains"))
        _draw_blocks(lines, list(zip(phys.tolist(), order.tolist(), strict=True)), summary)
    draw_violations(tree, report, paint)
    return tree


def _draw_memory(kho: Branch, handover: Handover) -> None:
    nodes = len(handover.tree.node_phys)
    kho.add(
        f"tree root {handover.tree.root:#x}, {amount(nodes, 'node')}, {size(nodes * PAGE_SIZE)}"
        + ("" if handover.tree_is_whole else ", damaged")
    )
    preserved = handover.preserved
    blocks = kho.add(f"preserved: {size(preserved.bytes)} in {amount(len(preserved), 'block')}")
    for order, count in preserved.count_by_order().items():
        blocks.add(f"order {order:2} ({size(PAGE_SIZE << order)}): {count:,}")
    if handover.scratch is None:
        kho.add("scratch: nothing in the image says where (--scratch ADDR,LEN)")
        return
    names = ("low", "global")
    scratch = kho.add(f"scratch: {size(sum(area.size for area in handover.scratch))}")
    for number, area in enumerate(handover.scratch):
        name = names[number] if number < 2 else f"node {number - 2}"
        scratch.add(f"{name}: {area.phys:#x}, {size(area.size)}")


def _draw_luo(tree: Branch, handover: Handover, luo: Luo, paint: Paint, summary: bool) -> None:
    files = sum(len(session.files) for session in luo.sessions)
    branch = tree.add(
        f"{paint('bold', 'LUO')} {clean(luo.compatible)}, live update {luo.liveupdate_num}, "
        f"{amount(len(luo.sessions), 'session')}, {amount(files, 'file')}"
    )
    shown = luo.sessions[:LINES_MAX] if not summary else []
    for session in shown:
        line = branch.add(
            f'session "{paint("cyan", clean(session.name))}": {amount(len(session.files), "file")}'
        )
        for file in session.files[:LINES_MAX]:
            line.add(_file_line(handover, file))
        if len(session.files) > LINES_MAX:
            line.add(f"and {amount(len(session.files) - LINES_MAX, 'more file')} (--json lists all)")
    if not summary and len(luo.sessions) > LINES_MAX:
        branch.add(f"and {amount(len(luo.sessions) - LINES_MAX, 'more session')} (--json lists all)")
    for flb in luo.flb_page.flbs if luo.flb_page else []:
        line = branch.add(f'FLB "{clean(flb.compatible)}": data {flb.data:#x}, {amount(flb.count, "user")}')
        if luo.iommu is not None and flb.compatible == IOMMU_COMPATIBLE and not summary:
            inspect_devices.draw_iommu(line, luo.iommu)
        if luo.pci is not None and flb.compatible == PCI_COMPATIBLE and not summary:
            inspect_devices.draw_pci(line, luo.pci)


def _file_line(handover: Handover, file: File) -> str:
    memfd = file.memfd
    what = inspect_devices.file_line(file)
    if what is not None:
        return f"token {file.token:#x}: {clean(file.compatible)}, {what}"
    if memfd is None:
        return f"token {file.token:#x}: {clean(file.compatible)}, data {file.data:#x}, not decoded"
    parts = [f"token {file.token:#x}: {clean(file.compatible)}", size(memfd.size)]
    if memfd.pos:
        parts.append(f"pos {memfd.pos}")
    if memfd.seals:
        names = [name for bit, name in enumerate(SEAL_NAMES) if memfd.seals >> bit & 1]
        parts.append("seals " + "+".join(names or [hex(memfd.seals)]))
    counts = memfd.folio_counts()
    if set(counts) - {0}:
        parts.append(" ".join(f"{count}×order {order}" for order, count in counts.items()))
    digest = memfd.sha256(handover.reader)
    parts.append(f"sha256 {digest[:16]}…" if digest else "contents incomplete")
    return ", ".join(parts)


def _draw_blocks(branch: Branch, blocks: list[tuple[int, int]], summary: bool) -> None:
    shown = blocks[: 0 if summary else LINES_MAX]
    for phys, order in shown:
        branch.add(f"{phys:#x}, order {order} ({size(PAGE_SIZE << order)})")
    if len(blocks) > len(shown) and shown:
        branch.add(f"and {len(blocks) - len(shown):,} more (--json lists all)")


def draw_violations(tree: Branch, report: Report, paint: Paint) -> None:
    """The verdict as lines below a tree."""
    if not report.violations:
        tree.add(paint("green", f"{amount(len(report.checked), 'invariant')} of moment {report.moment} hold"))
        return
    lines = tree.add(paint("red", f"{amount(len(report.violations), 'violation')} at moment {report.moment}"))
    for violation in report.violations:
        where = "" if violation.phys is None else f" at {violation.phys:#x}"
        lines.add(f"{paint('red', violation.id)}{where}: {clean(violation.message)}")
