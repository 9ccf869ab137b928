"""`luemu inspect IMAGE`: decode a handover and show it, as a tree for people or as JSON.

The decoders are `kho` and `luo`; this file finds out what the image is and puts them together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu import saved
from emu.debug.inspect_describe import describe
from emu.debug.inspect_draw import draw
from emu.debug.neighbour import Neighbour, read_neighbour
from emu.debug.output import UsageError, fail, parse_number, print_json, print_tree
from emu.errors import EmuError
from kho.check import MOMENTS, Report, Violation
from kho.errors import ImageError, KhoError, NotFound
from kho.handover import Handover
from kho.image import Image, MappedMemory, open_image
from kho.memory import PhysicalMemory, Reader
from kho.setup_data import ScratchArea, ScratchList
from luo import Luo
from luo.check import check

EXAMPLE = """example:
  luemu inspect dump.raw.zst
  luemu inspect --json --summary vmcore
  luemu inspect --fdt 0x495000 --scratch 0x7b2c000,48 memory.img
"""


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
        for session, file, memfd in luo.memfds if luo is not None else ():
            key = f"{session.name}/{file.token:#x}"
            digest = memfd.sha256(self.handover.reader)
            if digest is None or key not in then:
                continue  # what is missing breaks other rows
            compared = True
            if digest != then[key]:
                message = f"the contents of {key} are not what they were at J"
                report.violations.append(Violation("INV-26", report.moment, message, memfd.phys))
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
            print_tree(draw(opened.image, opened.handover, report, summary=args.summary), sys.stdout)
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


__all__ = ["add_options", "add_parser", "open_any", "open_handover", "open_memory", "run"]
