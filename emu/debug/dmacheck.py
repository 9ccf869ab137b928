"""Every DMA transaction of a run as an event, and whether the device had a right to it: `DmaWatch`.

An event is a record of 48 bytes (`EVENT`): who, by which address, where in memory, when, in which kernel and
phase, and who owned the page at that moment. A request that crosses into memory of another owner is several.

The right to write needs no guest's word. It rests on two things that the host reads for itself:

* the remapping tables as they are in memory now, walked without any cache: a write that they do not grant
  went through an entry that should have been invalidated, or past a unit that was switched off;
* the owner of the page (`emu.debug.owners`): from the jump until the new kernel has freed memory only
  preserved pages may be written to; at any other time no page that is free, of the kernel's image, scratch,
  or a table of the remapping unit. A mapping that the new kernel has inherited reaches preserved pages only.

From the freeze until the new kernel begins to finish a request that is refused is a violation as well: a
device that is preserved loses data, and one that is not should have been silenced. The masters at the jump
are looked at even if they do nothing: what their tables reach must be preserved.

`Reference` is what preserved memory has to be after the jump: as it was then, and what was granted since.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.debug.dmaright import (
    EXPOSED,
    FREE,
    IMAGE,
    IN_SCRATCH,
    INHERITED,
    LOST_TABLE,
    MASTER,
    NOT_PRESERVED,
    OFF,
    REFUSED,
    RIGHT,
    STALE,
    TABLE,
    WRONGS,
    DmaViolation,
    Reference,
    bdf,
    sorted_violations,
)
from emu.debug.dmatables import Tables, read_tables
from emu.debug.owners import NOBODY, OWNERS, PRESERVED, SCRATCH, TABLES, Owners, Words, getter
from emu.debug.phases import NAMES
from emu.debug.release import Kernel
from emu.devices import vtd_tables as tables
from emu.devices.pci import CLASS, HEADER_TYPE, PciFunction
from emu.devices.vtd import TE, Vtd
from emu.dma import NO_RAM, NOWHERE
from emu.machine import Machine, Snapshot
from emu.memory import PAGE
from kho.handover import Handover

EVENT = np.dtype(
    [
        ("tick", "<u8"), ("instruction", "<u8"), ("iova", "<u8"), ("phys", "<u8"), ("size", "<u4"),
        ("requester", "<u2"), ("write", "u1"), ("fault", "u1"), ("generation", "u1"), ("phase", "u1"),
        ("owner", "u1"), ("wrong", "u1"), ("", "V4"),
    ]
)  # fmt: skip
"""``phys``: `emu.dma.NOWHERE` if refused. ``phase``: place in `PHASES`; ``owner``: in `OWNERS`; ``wrong``: in
`WRONGS`, 0 for what is in order. ``generation``: of the kernel, 0 is the first; at most 255."""
PHASES = tuple(NAMES)
_PACK = struct.Struct("<QQQQIHBBBBBB4x").pack

VIOLATIONS_MAX = 200
EXPOSED_MAX = 20
GRANTS_MAX = 1 << 16


def functions(machine: Machine) -> dict[int, PciFunction]:
    """The PCI functions of a machine by requester id, as the bus numbers are now."""
    return {d.requester: d for d in machine.platform.devices if isinstance(d, PciFunction)}


_Grant = tuple[int, Callable[[Any], object], object, int, int]
"""What is remembered of one page of a device's addresses: page frame number, the words of memory on which the
judgement rests, their values, owner, what is wrong."""


class DmaWatch:
    """Watches all bus masters of a machine. The kernel of generation n is ``kernels[min(n, last)]``.

    Tell it the phases (`phase`) and the moments J, K and F (`moment`).
    """

    def __init__(self, machine: Machine, kernels: Sequence[Kernel]) -> None:
        self.machine = machine
        self.owners = Owners(machine, kernels)
        self.violations: list[DmaViolation] = []
        self.refused = 0
        """requests that were refused outside an update: a driver's business"""
        self.reference: Reference | None = None
        self._phase = "P1"
        self._code = 0
        self._generation = 0
        self._time = machine._time
        self._parts: list[bytes] = []
        self._packed: npt.NDArray[Any] = np.empty(0, EVENT)
        self._words = memoryview(machine.memory.view).cast("B").cast("Q")  # type: ignore[arg-type]
        self._grants: dict[int, _Grant] = {}
        """by requester, page and direction; good while `_state` is the same"""
        self._state: object = None
        self._found: dict[tuple[int, int, int, str, int], DmaViolation] = {}
        self._names = {r: f.name for r, f in functions(machine).items()}
        self._updating = False
        """from the freeze to the beginning of the finish nothing may be refused"""
        self._translated = False
        """Remapping has been on: from then on nothing may bypass it."""
        self._inherited: dict[int, list[tuple[int, int, int]]] = {}
        self._tables: tuple[int, Tables] = (-1, Tables())
        self._right = False
        """the write that memory is about to tell of"""
        unit = machine.platform.dma.iommu
        self._unit = unit if isinstance(unit, Vtd) else None
        machine.platform.dma.observers.append(self._request)
        machine.memory.observers.append(self._wrote)

    def close(self) -> None:
        """Watch no longer."""
        self.machine.platform.dma.observers.remove(self._request)
        self.machine.memory.observers.remove(self._wrote)
        self._words.release()

    # ---- what the run tells --------------------------------------------------------------------

    def phase(self, id: str) -> None:
        """A phase begins now."""
        self._phase, self._code = id, PHASES.index(id)
        self._generation = min(self.owners.generation, 255)
        leaving = self.owners.leaving
        if id in ("P8", "P9", "P10"):
            leaving = True
        elif id == "userspace":  # it was asked to go, and went on
            leaving = False
        if leaving != self.owners.leaving:
            self.owners.leaving = leaving
            self.owners.version += 1
            self._updating = self._updating and leaving
        if id in ("P9", "P10", "P11"):
            self._updating = True
        elif id in ("P21", "P22"):
            self._updating = False

    def moment(
        self,
        when: str,
        handover: Handover | None = None,
        snapshot: Snapshot | None = None,
        image: Sequence[tuple[int, int]] = (),
        adopted: bool = True,
    ) -> None:
        """J: with what is handed over, the machine as it is now, and the next kernel's segments. K, F."""
        if when == "J":
            found = self._walk_all()
            self.owners.moment("J", handover, image)
            self._inherited = {}
            for requester, iova, phys, size in found.reach:
                self._inherited.setdefault(requester, []).append((iova, phys, size))
            self._look_at_masters(found)
            self.reference = Reference(self.machine, snapshot) if snapshot is not None else None
        else:
            self.owners.moment(when, adopted=adopted)

    def _look_at_masters(self, found: Tables) -> None:
        """At the jump: whatever a master may write to must be preserved."""
        masters = {r: f for r, f in functions(self.machine).items() if f.bus_master}
        self._names = {r: f.name for r, f in functions(self.machine).items()}
        if self._unit is None or not self._unit.s.gsts & TE:
            for requester in self._ends(masters):  # nothing is between them and all of memory
                self._violate(requester, 0, None, 0, NOBODY, MASTER)
            return
        reaching = {requester for requester, *_ in found.reach} & set(masters)
        self._look_at_pages([span for span in found.reach if span[0] in reaching])
        for requester in self._ends(masters):
            if requester not in reaching:
                self._violate(requester, 0, None, 0, NOBODY, MASTER)
        for page in sorted(found.pages) if reaching else ():
            if not self.owners.was_preserved(page):
                self._violate(min(reaching), 0, page, 0, TABLES, LOST_TABLE)

    def _look_at_pages(self, spans: list[tuple[int, int, int, int]]) -> None:
        exposed = 0
        for requester, iova, phys, size in spans:
            pages = phys + np.arange(0, size, PAGE, dtype=np.uint64)
            for at in (pages[~self.owners.were_preserved(pages)] - np.uint64(phys)).tolist():
                owner = self.owners.of(phys + at)[0]
                self._violate(requester, iova + at, phys + at, 0, owner, EXPOSED)
                exposed += 1
                if exposed >= EXPOSED_MAX:
                    return

    def _ends(self, masters: dict[int, PciFunction]) -> list[int]:
        """Without the bridges."""
        return [
            r
            for r, f in masters.items()
            if f.register(HEADER_TYPE, 1) & 0x7F == 0 and f.register(CLASS + 2, 1) != 6
        ]

    # ---- one request ---------------------------------------------------------------------------

    def _request(
        self, tick: int, requester: int, iova: int, phys: int, size: int, write: bool, fault: int
    ) -> None:
        if fault:
            self._right = False
            self._refuse(tick, requester, iova, phys, size, write, fault)
            return
        unit = self._unit
        state = (
            (self.owners.version, unit.s.root, unit.s.gsts & TE) if unit is not None else self.owners.version
        )
        if state != self._state:
            self._state = state
            self._grants.clear()
        words, known = self._words, self._grants.get
        end, at, start = phys + size, phys, phys
        delta, base = iova - phys, requester << 53 | write
        owner, wrong, good = -1, RIGHT, True
        while at < end:
            found = known(base | (at + delta) >> 12 << 1)
            if found is None or found[0] != at >> 12 or found[1](words) != found[2]:
                found = self._judge(requester, at + delta, at, write)
            if found[3] != owner or found[4] != wrong:
                if at > start:
                    self._note(tick, requester, start + delta, start, at - start, write, owner, wrong)
                    start = at
                owner, wrong = found[3], found[4]
                good = good and not wrong
            at = (at & -PAGE) + PAGE
        self._note(tick, requester, start + delta, start, end - start, write, owner, wrong)
        self._right = good

    def _note(
        self, tick: int, requester: int, iova: int, phys: int, size: int, write: bool, owner: int, wrong: int
    ) -> None:
        self._parts.append(
            _PACK(
                tick, max(tick - self._time.skipped, 0), iova, phys, size, requester, write, 0,
                self._generation, self._code, owner, wrong,
            )
        )  # fmt: skip
        if wrong:
            self._violate(requester, iova, phys, size, owner, wrong, tick)

    def _refuse(
        self, tick: int, requester: int, iova: int, phys: int, size: int, write: bool, fault: int
    ) -> None:
        wrong = REFUSED if self._updating else RIGHT
        self._parts.append(
            _PACK(
                tick, max(tick - self._time.skipped, 0), iova, phys, size, requester, write, fault,
                self._generation, self._code, NOBODY, wrong,
            )
        )  # fmt: skip
        if wrong:
            # the page that the previous kernel's tables had there, if any: what the device meant
            meant = self._inherited_at(requester, iova)
            owner = NOBODY if meant is None else self.owners.of(meant)[0]
            self._violate(requester, iova, meant, size, owner, wrong, tick, write)
        else:
            self.refused += 1

    def _violate(
        self,
        requester: int,
        iova: int,
        phys: int | None,
        size: int,
        owner: int,
        wrong: int,
        tick: int | None = None,
        write: bool = True,
    ) -> None:
        page = -1 if phys is None else phys & -PAGE
        key = (requester, page, wrong, self._phase, self._generation)
        known = self._found.get(key)
        if known is not None:
            known.count += 1
            return
        when = self.machine.ticks if tick is None else tick
        name = self._names.get(requester) or self._name(requester)
        self._found[key] = found = DmaViolation(
            name, requester, iova, None if phys is None else page, size, when,
            max(when - int(self._time.skipped), 0), self._generation, self._phase, OWNERS[owner], wrong,
            write,
        )  # fmt: skip
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(found)

    def _name(self, requester: int) -> str:
        self._names = {r: f.name for r, f in functions(self.machine).items()}
        return self._names.get(requester, "unknown device")

    def _wrote(self, phys: int, size: int, by: str) -> None:
        """Memory has changed."""
        reference = self.reference
        if reference is None or not by.startswith("dma:"):
            return
        right, self._right = self._right or by == "dma:vtd", False
        if right:
            for page in range(phys & -PAGE, phys + size, PAGE):
                if self.owners.was_preserved(page) and not self.owners.restored(page):
                    low = max(phys, page)
                    reference.wrote(low, min(phys + size, page + PAGE) - low)

    # ---- the right to a page -------------------------------------------------------------------

    def _judge(self, requester: int, iova: int, phys: int, write: bool) -> _Grant:
        """Owner of a page and what is wrong with an access to it."""
        owner, wrong, words = self._judge_anew(requester, iova, phys, write)
        if words is None:
            return phys >> 12, getter(()), None, owner, wrong
        if len(self._grants) > GRANTS_MAX:
            self._grants.clear()
        read = getter(words)
        found = phys >> 12, read, read(self._words), owner, wrong
        self._grants[requester << 53 | write | iova >> 12 << 1] = found
        return found

    def _judge_anew(self, requester: int, iova: int, phys: int, write: bool) -> tuple[int, int, Words | None]:
        owners = self.owners
        owner, words = owners.of(phys)
        if phys & -PAGE in self._all_tables().pages:
            owner, words = TABLES, None
        if not write:
            return owner, RIGHT, words
        granted, table_words = self._granted(requester, iova, phys)
        wrong = granted
        if not wrong:
            if owners.blackout:
                wrong = RIGHT if owner in (PRESERVED, TABLES) else NOT_PRESERVED
            elif owner == NOBODY:
                wrong = FREE
            elif owner == SCRATCH:
                wrong = IN_SCRATCH
            elif owners.in_image(phys):
                wrong = IMAGE
            elif (
                owner != PRESERVED
                and self._inherited_at(requester, iova) == phys
                and not owners.was_preserved(phys)
            ):
                wrong = INHERITED
        if owner == TABLES and not wrong:
            wrong = TABLE
        if words is None or table_words is None:
            return owner, wrong, None
        return owner, wrong, tuple(dict.fromkeys((*words, *table_words)))

    def _inherited_at(self, requester: int, iova: int) -> int | None:
        """Where the tables of the previous kernel had led at the jump."""
        for start, phys, size in self._inherited.get(requester, ()):
            if start <= iova < start + size:
                return phys + iova - start
        return None

    def _granted(self, requester: int, iova: int, phys: int) -> tuple[int, Words | None]:
        """What is wrong with a write as far as tables go, and the words of memory that say so."""
        unit = self._unit
        if unit is None:
            return RIGHT, ()
        if not unit.s.gsts & TE:
            return (OFF if self._translated else RIGHT), ()
        self._translated = True
        memory = self.machine.memory
        words: list[int] = []

        def read(at: int, size: int) -> bytes | None:
            if not memory.contains(at, size):
                return None
            place = memory.offset(at, size) // 8
            words.extend(range(place, place + max(size // 8, 1)))
            return memory.copy(at, size)

        try:
            low, high = tables.context_entry(read, unit.s.root, requester)
            if tables.passes_through(low):
                return (RIGHT if iova == phys else STALE), tuple(words)
            if iova >> tables.width_of(high):
                return STALE, None
            page, _, shift = tables.walk(read, low, high, iova, tables.WRITE)
        except tables.Fault:
            return STALE, None
        same = (page >> shift << shift) + iova % (1 << shift) == phys
        return (RIGHT, tuple(words)) if same else (STALE, None)

    # ---- all tables ----------------------------------------------------------------------------

    def _all_tables(self) -> Tables:
        """The tables as they were when something was last looked at that may have changed them."""
        if self._tables[0] != self.owners.version:
            self._tables = self.owners.version, self._walk_all()
        return self._tables[1]

    def _walk_all(self) -> Tables:
        """Everything that the remapping tables in memory grant; nothing while remapping is off."""
        unit = self._unit
        if unit is None or not unit.s.gsts & TE:
            return Tables()
        self._translated = True
        return read_tables(self.machine.memory, unit.s.root)

    # ---- what came of it -----------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._packed) + len(self._parts)

    def records(self) -> npt.NDArray[Any]:
        """All events in the order in which they happened, as an array of `EVENT`."""
        if self._parts:
            new = np.frombuffer(b"".join(self._parts), EVENT)
            self._packed = np.concatenate((self._packed, new)) if len(self._packed) else new
            self._parts = []
        return self._packed


def plain(event: Any) -> dict[str, object]:
    """One record, for a trace."""
    refused = int(event["fault"]) != 0
    return {
        "event": "dma",
        "tick": int(event["tick"]),
        "instruction": int(event["instruction"]),
        "bdf": bdf(int(event["requester"])),
        "direction": "write" if event["write"] else "read",
        "iova": int(event["iova"]),
        "phys": None if int(event["phys"]) == NOWHERE else int(event["phys"]),
        "size": int(event["size"]),
        "kernel": int(event["generation"]),
        "phase": NAMES[PHASES[int(event["phase"])]],
        "owner": OWNERS[int(event["owner"])],
        "refused": ("no RAM" if int(event["fault"]) == NO_RAM else int(event["fault"])) if refused else None,
        "violation": WRONGS[int(event["wrong"])] or None,
    }


__all__ = [
    "EVENT", "PHASES", "WRONGS", "DmaViolation", "DmaWatch", "Reference", "bdf", "functions", "plain",
    "sorted_violations",
]  # fmt: skip
