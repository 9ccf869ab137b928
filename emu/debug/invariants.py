"""Invariants of a live update that show only while kernels run: `RuntimeChecker`.

It watches an unmodified Linux from the entries of its functions (arguments in registers) and looks into
its structures (`emu.debug.linux`) at those points and at the moments J, K, F and the end. It changes
nothing of the run. What cannot be seen is listed with the reason; a structure that is not as Linux 7.2 has
it is believed in nothing and makes the invariants that need it "not checked".

Calls and structures as in Linux 7.2: `struct liveupdate_file_op_args`, `struct luo_file_set`,
`struct luo_session`, `struct memfd_luo_ser`, `struct luo_ser`, `struct boot_params`, `struct memblock`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.debug.guest import UnknownLayout
from emu.debug.linux import (
    MIGRATE_CMA,
    PIN,
    RSRV_KERN,
    RSRV_NOINIT,
    Linux,
    LuoFile,
    LuoSession,
)
from emu.debug.struct_pages import StructPages
from emu.debug.symbols import Symbols
from emu.errors import AddressError
from emu.machine import Machine, Snapshot
from kho import check as kho_check
from kho.abi import PAGE_SIZE
from kho.check import Report, Violation
from kho.handover import Handover
from kho.memory import Reader, Words
from kho.setup_data import ScratchArea, lies_in
from luo.abi import LUO_COMPATIBLE
from luo.check import metadata_pages
from luo.memfd import Memfd
from luo.state import Luo

FIRST_MIB = 1 << 20
VIOLATIONS_PER_ID_MAX = 50
RESTORES_MAX = 20_000
"""More restored blocks than this are not watched one by one: each costs the run some microseconds."""
SESSION_SIZE, FILE_SIZE, BLOCKS_MAX = 80, 64, 10_000
NAME_SIZE = 64
ERRNO_MAX = 4095

SENDER, RECEIVER = "sender", "receiver"

OBSERVED: dict[str, str] = {
    "INV-3": "",
    "INV-17": "nothing was serialized",
    "INV-18": "the kernel has no FLB",
    "INV-22": "no serialization failed",
    "INV-26": "",
    "INV-27": "no file was preserved",
    "INV-32": "",
    "INV-33": "",
    "INV-34": "",
    "INV-35": "",
    "INV-36": "",
    "INV-37": "no block was restored",
    "INV-38": "no block was restored",
    "INV-39": "",
    "INV-40": "/dev/liveupdate was not used in the new kernel",
    "INV-41": "no file was retrieved",
    "INV-42": "no session was retrieved",
    "INV-43": "no session with files was finished",
    "INV-44": "the kernel has no FLB",
    "INV-45": "not every session was retrieved, finished and closed",
    "INV-46": "/dev/liveupdate was not used",
    "INV-47": "nothing was serialized",
    "INV-48": "no file was frozen",
    "INV-49": "nothing was serialized",
    "INV-50": "",
}
"""What the run can tell, and why it did not where the occasion did not come (empty: it always comes)."""

NOT_SEEN = "the run did not get there, or not through a function that the symbols name"

_CALLS: dict[str, str] = {
    # function of the kernel: method here, called at each entry with the registers
    "luo_session_create": "_session_create",
    "luo_preserve_file": "_mutates",
    "memfd_luo_preserve": "_preserve",
    "kho_preserve_vmalloc": "_preserve_array",
    "memfd_luo_unpreserve": "_unpreserve",
    "luo_file_unpreserve_files": "_mutates",
    "luo_session_serialize": "_serialize",
    "luo_file_freeze": "_freeze_files",
    "memfd_luo_freeze": "_freeze",
    "__luo_file_unfreeze": "_unfreeze",
    "kernel_restart_prepare": "_serialized",
    "device_shutdown": "_device_shutdown",
    "x86_64_start_kernel": "_start_kernel",
    "memblock_set_kho_scratch_only": "_scratch_only",
    "memblock_free_all": "_free_all",
    "memblock_free_pages": "_free_pages",
    "kho_init": "_kho_init",
    "kho_add_subtree": "_add_subtree",
    "kho_restore_page": "_restore",
    "free_reserved_area": "_managed_changes",
    "luo_open": "_open",
    "luo_session_deserialize": "_deserialize",
    "luo_ioctl": "_ioctl",
    "luo_release": "_release",
    "luo_session_retrieve": "_session_retrieve",
    "luo_session_getfile": "_session_granted",
    "luo_retrieve_file": "_mutates",
    "memfd_luo_retrieve": "_retrieve",
    "luo_file_finish": "_finish_files",
    "memfd_luo_finish": "_finish",
    "luo_flb_file_preserve": "_flb_preserve",
    "liveupdate_flb_get_outgoing": "_flb_get",
    "liveupdate_flb_put_outgoing": "_flb_put",
    "liveupdate_flb_get_incoming": "_flb_ask",
    "liveupdate_register_flb": "_flb_register",
    "liveupdate_unregister_flb": "_flb_unregister",
}  # fmt: skip

Registers = dict[str, int]


@dataclass(frozen=True)
class SerializedFile:
    """A file of a handover at J."""

    session: str
    token: int
    data: int
    compatible: str
    memfd: Memfd | None


@dataclass(frozen=True)
class Received:
    """What a kernel was handed, as it was at J."""

    handover: Handover
    scratch: list[ScratchArea]
    number: int
    kexec_count: int | None
    luo: Luo | None
    names: frozenset[str]
    """of the sessions"""
    files: dict[int, SerializedFile]
    """by handle"""
    consumed: Words
    """blocks that are restored when all sessions are finished and closed"""
    snapshot: Snapshot

    def __deepcopy__(self, memo: dict[int, Any]) -> Received:
        return self


@dataclass(frozen=True)
class _Kept:
    """A snapshot that copies of the state share."""

    snapshot: Snapshot

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return self


@dataclass(frozen=True)
class _Preserved:
    """A memfd as it was when it was preserved."""

    size: int
    seals: int
    array: bytes
    inode: int
    size_at: tuple[int, ...]
    """offsets in the inode at which its size may be: that of i_size and what happens to be equal"""


@dataclass
class _Kernel:
    """What was seen of one kernel."""

    generation: int
    received: Received | None = None
    blind: str = ""
    """why nothing is known of what it was handed"""
    # as the one that hands over
    preserving: int | None = None
    preserved: dict[int, _Preserved] = field(default_factory=dict)
    serialize: str = ""
    """"", "running", "done" or "failed" """
    frozen: list[int] = field(default_factory=list)
    unfrozen: list[tuple[int, int]] = field(default_factory=list)
    end_of_serialize: _Kept | None = None
    shut_down: bool = False
    flbs: dict[int, set[int]] = field(default_factory=dict)
    """handlers of each FLB"""
    flb_users: Counter[int] = field(default_factory=Counter)
    flb_pending: int | None = None
    flb_held: bool = False
    flb_names: dict[int, str] = field(default_factory=dict)
    flb_events: Counter[tuple[str, int]] = field(default_factory=Counter)
    # as the one that receives
    adopting: bool = False
    freeing: bool = False
    initialised: bool = False
    restored: dict[int, int] = field(default_factory=dict)
    managed: int | None = None
    """_totalram_pages when blocks began to be restored"""
    managed_blocks: int = 0
    managed_phys: int | None = None
    deserialized: bool = False
    compared: bool = False
    opening: int | None = None
    opened: int | None = None
    asking: str | None = None
    granted: set[str] = field(default_factory=set)
    retrieved: set[int] = field(default_factory=set)
    finishing: list[int] = field(default_factory=list)
    finishing_all: int = 0
    finished: set[int] = field(default_factory=set)
    concluded: bool = False


@dataclass
class State:
    """Everything that the checker knows; a deep copy of it can be put back with the machine's snapshot."""

    kernel: _Kernel
    violations: list[tuple[int, str, Violation]] = field(default_factory=list)
    """(kernel, side, violation)"""
    checked: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    unknown: dict[tuple[int, str], dict[str, str]] = field(default_factory=dict)
    jumps: int = 0
    blind: dict[int, str] = field(default_factory=dict)


class RuntimeChecker:
    """Watches a run. ``symbols`` of generation n is ``symbols[min(n, last)]``; a kernel without is not
    watched.

    Tell it the moments with `moment`; `report` gives what was found of an update.
    """

    def __init__(self, machine: Machine, symbols: list[Symbols | None]) -> None:
        self.machine = machine
        self.symbols = symbols
        self.state = State(_Kernel(0))
        self._installed: list[tuple[int, Callable[[Machine, int], bool | None]]] = []
        self._functions: set[int] = set()
        self._returns: set[int] = set()
        self._callbacks: set[int] = set()
        self._of: Symbols | None = None
        self._view: Linux | None = None
        """good until the machine runs on"""
        self._registers: Registers | None = None
        self._install()

    # ---- probes --------------------------------------------------------------------------------

    def _symbols(self) -> Symbols | None:
        n = self.state.kernel.generation
        return self.symbols[min(n, len(self.symbols) - 1)] if self.symbols else None

    def _install(self) -> None:
        symbols = self._symbols()
        keep = set() if symbols is not self._of else self._functions
        for address in {address for address, _ in self._installed} - keep:
            self._remove(address)
        self._of, self._returns, self._callbacks = symbols, set(), set()
        there = {address for address, _ in self._installed}
        self._functions = set()
        for name in _CALLS if symbols is not None else ():
            at = symbols.address(name) if symbols is not None else None
            if at is not None:
                self._functions.add(at)
                if at not in there:
                    self._add(at, self._handler(name))

    def _add(self, address: int, handler: Callable[[Machine, int], bool | None]) -> None:
        self.machine.probe(address, handler)
        self._installed.append((address, handler))

    def _remove(self, address: int) -> None:
        for item in [i for i in self._installed if i[0] == address]:
            self.machine.unprobe(*item)
            self._installed.remove(item)

    def _handler(self, name: str) -> Callable[[Machine, int], bool | None]:
        def entered(machine: Machine, address: int) -> None:
            self.entered(name, machine.cpus[0].registers())

        return entered

    def entered(self, function: str, registers: Registers) -> None:
        """A function of the kernel is about to begin with these registers."""
        self._view, self._registers = None, registers
        method: Callable[[Registers], None] = getattr(self, _CALLS[function])
        method(registers)

    # ---- results -------------------------------------------------------------------------------

    @property
    def _linux(self) -> Linux:
        if self._view is None:
            symbols = self._symbols()
            if symbols is None:
                raise UnknownLayout("the kernel's symbols are not known")
            self._view = Linux(self.machine, symbols, self._registers)
        return self._view

    @contextmanager
    def _checking(self, id: str, side: str) -> Iterator[None]:
        """An invariant is being checked; it is not where something turns out to be unknown."""
        key = (self.state.kernel.generation, side)
        try:
            yield
        except (UnknownLayout, AddressError) as e:
            self.state.unknown.setdefault(key, {}).setdefault(id, str(e))
        else:
            self.state.checked.setdefault(key, set()).add(id)

    def _violate(self, id: str, side: str, when: str, message: str, phys: int | None) -> None:
        kernel = self.state.kernel.generation
        same = sum(1 for k, s, v in self.state.violations if (k, s, v.id) == (kernel, side, id))
        if same < VIOLATIONS_PER_ID_MAX:
            self.state.violations.append((kernel, side, Violation(id, when, message, phys)))

    def report(self, generation: int) -> Report:
        """What was found of the update from kernel ``generation`` to the next."""
        s = self.state
        keys = {(generation, SENDER), (generation + 1, RECEIVER)}
        if generation + 1 >= s.jumps:  # no later update: what the last kernel prepared belongs to this one
            keys.add((generation + 1, SENDER))
        if not generation:
            keys.add((0, RECEIVER))
        report = Report("run")
        report.violations = [v for k, side, v in s.violations if (k, side) in keys]
        unknown: dict[str, str] = {}
        checked: set[str] = set()
        for key in sorted(keys):
            checked |= s.checked.get(key, set())
            unknown = s.unknown.get(key, {}) | unknown
        blind = s.blind.get(generation + 1, "")
        if not all(self.symbols[min(n, len(self.symbols) - 1)] for n in (generation, generation + 1)):
            blind = blind or "the kernel's symbols are not known"
        for id, reason in OBSERVED.items():
            if id in unknown:
                report.not_checked[id] = unknown[id]
            elif id in checked:
                report.checked.append(id)
            else:
                report.not_checked[id] = blind or reason or NOT_SEEN
        return report

    # ---- moments -------------------------------------------------------------------------------

    def moment(self, when: str, generation: int, handover: Handover | None) -> None:
        """A moment of an update: J (with the handover), K, F; or "end" of the run."""
        self._view = self._registers = None
        if when == "J":
            self._jump(handover)
        elif self._symbols() is None:
            return
        elif when == "K":
            self._adopt()
        elif when == "F":
            self._adopted()
        elif when == "end":
            self._conclude("end")

    # ---- the kernel that hands over ------------------------------------------------------------

    def _mutates(self, r: Registers) -> None:
        """A call that changes sessions or files: none may get here after the serialization."""
        k = self.state.kernel
        k.flb_pending = None
        if k.serialize == "done":
            where = self._linux.where(r["rdi"])
            self._violate(
                "INV-47", SENDER, "J", "sessions or files are changed after the serialization", where
            )

    def _session_create(self, r: Registers) -> None:
        self.state.kernel.asking = None

    def _preserve(self, r: Registers) -> None:
        k = self.state.kernel
        k.preserving = r["rdi"]
        if k.flb_pending is not None:
            for flb, handlers in k.flbs.items():
                k.flb_users[flb] += k.flb_pending in handlers
        k.flb_pending = None

    def _preserve_array(self, r: Registers) -> None:
        """Inside memfd_luo_preserve, when all folios are pinned and listed."""
        k = self.state.kernel
        args, k.preserving = k.preserving, None
        if args is None:
            return
        with self._checking("INV-27", SENDER):
            linux = self._linux
            record = r["rsi"] - 32  # struct memfd_luo_ser: pos, size, seals, flags, nr_folios, folios
            size, seals = linux.number(record + 8), linux.number(record + 16, 4)
            if record % PAGE_SIZE or not size:
                raise UnknownLayout(f"{record:#x} is no record of a memfd")
            array = bytearray()
            want = 16 * -(-size // PAGE_SIZE)
            while len(array) < want and linux.where(r["rdi"] + len(array)) is not None:
                array += linux.read(r["rdi"] + len(array), min(PAGE_SIZE, want - len(array)))
            inode = linux.inode(linux.pointer(args + 16))
            words = np.frombuffer(linux.read(inode, 160), "<u8")
            at = tuple(8 * int(i) for i in np.flatnonzero(words == np.uint64(size)))
            k.preserved[linux.phys(record)] = _Preserved(size, seals, bytes(array), inode, at)

    def _unpreserve(self, r: Registers) -> None:
        self._mutates(r)
        with self._checking("INV-27", SENDER):
            self.state.kernel.preserved.pop(self._linux.number(r["rdi"] + 24), None)

    def _serialize(self, r: Registers) -> None:
        k = self.state.kernel
        k.serialize, k.frozen, k.unfrozen = "running", [], []
        with self._checking("INV-17", SENDER):
            self._check_unique(self._linux.sessions("outgoing"))
        with self._checking("INV-22", SENDER):
            back = self._linux.number(r["rsp"])
            if back not in self._returns:
                self._returns.add(back)
                self._add(back, self._returned)
        self.state.checked[k.generation, SENDER].discard("INV-22")

    def _check_unique(self, sessions: list[LuoSession]) -> None:
        linux = self._linux
        names: set[str] = set()
        objects: set[int] = set()
        for session in sessions:
            if session.name in names:
                where = linux.where(session.address)
                self._violate("INV-17", SENDER, "J", f'two sessions have the name "{session.name}"', where)
            names.add(session.name)
            tokens: set[int] = set()
            for file in session.files:
                where = linux.where(file.address)
                if file.token in tokens:
                    message = f'session "{session.name}" has the token {file.token:#x} twice'
                    self._violate("INV-17", SENDER, "J", message, where)
                tokens.add(file.token)
                inode = linux.inode(file.file)
                if inode in objects:
                    message = f'the file {file.token:#x} of session "{session.name}" is preserved twice'
                    self._violate("INV-17", SENDER, "J", message, where)
                objects.add(inode)

    def _returned(self, machine: Machine, address: int) -> None:
        if self.state.kernel.serialize == "running":
            self.serialize_returned(machine.cpus[0].registers()["rax"] & 0xFFFF_FFFF)

    def serialize_returned(self, value: int) -> None:
        """luo_session_serialize has returned this."""
        self._view = self._registers = None
        k = self.state.kernel
        k.serialize = "failed" if value else "done"
        if value:
            with self._checking("INV-22", SENDER):
                self._check_undone()

    def _check_undone(self) -> None:
        """INV-22: a serialization has failed, and nothing of it may remain."""
        k, linux = self.state.kernel, self._linux

        def broken(message: str, phys: int | None) -> None:
            self._violate("INV-22", SENDER, "J", f"after a failed serialization {message}", phys)

        if linux.number(self._luo_ser() + 16):
            broken("sessions are still handed over", linux.phys(self._luo_ser()) + 16)
        # the counts of these blocks are stale by design: the next serialization writes them anew
        for at, _, entries in self._blocks(linux.session_blocks()):
            words = entries[: 51 * SESSION_SIZE].reshape(-1, SESSION_SIZE)
            for slot in np.flatnonzero(words.any(axis=1)).tolist():
                broken("the record of a session remains", at + 16 + SESSION_SIZE * slot)
        undone = Counter(file_set for file_set, _ in k.unfrozen)
        for session in linux.sessions("outgoing"):
            for at, count, entries in self._blocks(linux.file_blocks(session.file_set)):
                if count or entries.any():
                    broken(f'records of the files of session "{session.name}" remain', at)
            times = undone[session.file_set]
            if session.files and times != (session.file_set in k.frozen):
                message = f'the files of session "{session.name}" are unfrozen {times} times'
                broken(message, linux.where(session.address))
        for file_set, failed in k.unfrozen:
            if bool(failed) != (file_set == k.frozen[-1]):
                broken("other files are unfrozen than were frozen", linux.where(file_set))
        if linux.rwsem_writer("luo_session_serialize_rwsem"):
            broken("sessions stay locked", linux.where(linux.symbol("luo_session_serialize_rwsem")))

    def _luo_ser(self) -> int:
        """Virtual address of the struct luo_ser that this kernel hands over."""
        linux = self._linux
        at = linux.pointer(linux.symbol("luo_global") + 8)
        if linux.text(at, 8) != LUO_COMPATIBLE:
            raise UnknownLayout(f"there is no LUO state at {at:#x}")
        return at

    def _blocks(self, head: int) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        """(address, count, entries) of each block of a chain."""
        at = head
        for _ in range(BLOCKS_MAX):
            if not at:
                return
            raw = self.machine.memory.read(at, PAGE_SIZE)
            following, count = (int(w) for w in raw[:16].view("<u8"))
            yield at, count, raw[16:]
            at = following
        raise UnknownLayout(f"the blocks from {head:#x} on do not end")

    def _freeze_files(self, r: Registers) -> None:
        self.state.kernel.frozen.append(r["rdi"])

    def _unfreeze(self, r: Registers) -> None:
        self.state.kernel.unfrozen.append((r["rdi"], r["rsi"]))

    def _freeze(self, r: Registers) -> None:
        k = self.state.kernel
        with self._checking("INV-48", SENDER):
            if k.shut_down or self._linux.flag("kexec_in_progress"):
                where = self._linux.number(r["rdi"] + 24)
                self._violate(
                    "INV-48", SENDER, "J", "a file is frozen after devices began to be shut down", where
                )

    def _serialized(self, r: Registers) -> None:
        k = self.state.kernel
        if k.serialize == "done":
            k.end_of_serialize = _Kept(self.machine.snapshot())

    def _device_shutdown(self, r: Registers) -> None:
        self.state.kernel.shut_down = True

    # ---- FLBs ----------------------------------------------------------------------------------

    def _flb_register(self, r: Registers) -> None:
        """liveupdate_register_flb(handler, flb); struct liveupdate_flb: ops, compatible."""
        self.flb_learn(r["rsi"])
        self.state.kernel.flbs.setdefault(r["rsi"], set()).add(r["rdi"])

    def _flb_ask(self, r: Registers) -> None:
        """liveupdate_flb_get_incoming(flb, …), which may come before it is registered."""
        self.flb_learn(r["rdi"])

    def flb_learn(self, flb: int) -> None:
        """There is an FLB: watch its own retrieve and finish."""
        self._view = self._registers = None
        k = self.state.kernel
        with self._checking("INV-44", RECEIVER):
            linux = self._linux
            ops = linux.pointer(flb)  # preserve, unpreserve, retrieve, finish
            k.flb_names[flb] = linux.text(flb + 8, 48)
            for at, what in ((16, "retrieve"), (24, "finish")):
                function = linux.pointer_any(ops + at)
                if function not in self._callbacks:
                    self._callbacks.add(function)
                    self._add(function, self._flb_callback(what))

    def _flb_unregister(self, r: Registers) -> None:
        self.state.kernel.flbs.get(r["rsi"], set()).discard(r["rdi"])

    def _flb_callback(self, what: str) -> Callable[[Machine, int], bool | None]:
        def called(machine: Machine, address: int) -> None:
            self.flb_called(what, machine.cpus[0].registers())

        return called

    def flb_called(self, what: str, r: Registers) -> None:
        """An FLB's own retrieve or finish is called; struct liveupdate_flb_op_args: flb, data, obj."""
        self._view = self._registers = None
        k = self.state.kernel
        with self._checking("INV-44", RECEIVER):
            linux = self._linux
            flb = linux.pointer(r["rdi"])
            name = k.flb_names.get(flb, "?")
            if what == "finish" and not k.flb_events["retrieve", flb]:
                self._violate("INV-44", RECEIVER, "run", f'FLB "{name}" is finished and was never retrieved',
                              linux.where(flb))  # fmt: skip
            if k.flb_events[what, flb]:
                self._violate("INV-44", RECEIVER, "run", f'{what} of FLB "{name}" is called again',
                              linux.where(flb))  # fmt: skip
            k.flb_events[what, flb] += 1

    def _flb_preserve(self, r: Registers) -> None:
        self.state.kernel.flb_pending = r["rdi"]

    def _flb_get(self, r: Registers) -> None:
        self.state.kernel.flb_held = True

    def _flb_put(self, r: Registers) -> None:
        k = self.state.kernel
        if k.flb_pending is None:
            k.flb_users[r["rdi"]] -= 1

    # ---- J -------------------------------------------------------------------------------------

    def _jump(self, handover: Handover | None) -> None:
        s, k = self.state, self.state.kernel
        received: Received | None = None
        if self._symbols() is not None:
            self._conclude("J")
            if handover is not None:
                self._check_jump(handover)
        if handover is None:
            s.blind[k.generation + 1] = "the handover could not be read at J"
        else:
            received = _received(handover, self.machine.snapshot())
        s.jumps += 1
        s.kernel = _Kernel(k.generation + 1, received)
        self._install()

    def _check_jump(self, handover: Handover) -> None:
        k = self.state.kernel
        luo = Luo.read(handover)
        if luo is not None and luo.understood:
            with self._checking("INV-50", SENDER):
                if k.serialize != "done" and luo.sessions_phys:
                    self._violate(
                        "INV-50", SENDER, "J", "sessions are handed over that were not serialized", luo.phys
                    )
            self._check_flbs(luo)
            with self._checking("INV-27", SENDER):
                for session in luo.sessions:
                    for file in session.files:
                        if file.memfd is not None:
                            self._check_memfd(file.memfd)
            if not k.preserved:
                self.state.checked[k.generation, SENDER].discard("INV-27")
        if k.serialize == "done":
            with self._checking("INV-47", SENDER):
                linux = self._linux
                if not linux.rwsem_writer("luo_session_serialize_rwsem"):
                    where = linux.where(linux.symbol("luo_session_serialize_rwsem"))
                    self._violate("INV-47", SENDER, "J", "sessions are no longer locked at the jump", where)
            self._check_metadata(handover)
        if handover.scratch is not None:
            self._check_scratch_type(handover.scratch, "J")

    def _check_metadata(self, handover: Handover) -> None:
        """INV-49: from the end of the serialization to J."""
        kept = self.state.kernel.end_of_serialize
        if kept is None:
            return
        with self._checking("INV-49", SENDER):
            for phys in metadata_pages(handover).tolist():
                if phys and self._changed(kept.snapshot, phys):
                    message = "a page of metadata changed between the end of the serialization and the jump"
                    self._violate("INV-49", SENDER, "J", message, phys)

    def _changed(self, then: Snapshot, phys: int) -> bool:
        """Whether a page is not what it was in a snapshot."""
        memory = self.machine.memory
        old = then.page(memory.offset(phys, PAGE_SIZE) // PAGE_SIZE)
        now = memory.read(phys, PAGE_SIZE)
        return bool(now.any()) if old is None else not np.array_equal(old, now)

    def _check_memfd(self, memfd: Memfd) -> None:
        """INV-27: a file at J against what was preserved."""
        linux = self._linux
        then = self.state.kernel.preserved.get(memfd.phys)
        if then is None:
            return

        def broken(message: str, phys: int | None) -> None:
            self._violate("INV-27", SENDER, "J", message, phys)

        if (memfd.size, memfd.seals) != (then.size, then.seals):
            broken(
                f"the size or seals of a preserved file changed (size {then.size} to {memfd.size})",
                memfd.phys,
            )
        elif len(then.size_at) == 1 and linux.number(then.inode + then.size_at[0]) != then.size:
            broken("a preserved file has another size than its record", linux.where(then.inode))
        if memfd.area is None or memfd.area.problems:
            return
        now = memfd.area.read(Reader(self.machine.memory), 16 * memfd.nr_folios)
        if np.ascontiguousarray(now).tobytes() != then.array[: 16 * memfd.nr_folios]:
            broken("the pages of a preserved file are others than those preserved", memfd.phys)
        linux.check_struct_pages()
        large = memfd.folio_order > 0
        pins = np.where(large, 0, linux.refcount(memfd.folio_phys))
        if large.any():
            pins[large] = linux.pincount(memfd.folio_phys[large]) * PIN
        for phys in memfd.folio_phys[pins < PIN].tolist():
            broken("a folio of a preserved file is not pinned", phys)

    def _check_flbs(self, luo: Luo) -> None:
        k = self.state.kernel
        if luo.flb_page is None or not (k.flbs or luo.flb_page.flbs) or k.serialize != "done":
            return
        with self._checking("INV-18", SENDER):
            if k.flb_held:
                raise UnknownLayout("an FLB was asked for, and whether it was given does not show")
            users = {k.flb_names.get(flb, "?"): count for flb, count in k.flb_users.items() if count}
            counts = {flb.compatible: flb.count for flb in luo.flb_page.flbs}
            for name in sorted(users.keys() | counts.keys()):
                if users.get(name, 0) != counts.get(name, 0):
                    message = f'FLB "{name}" counts {counts.get(name, 0)} users and has {users.get(name, 0)}'
                    self._violate("INV-18", SENDER, "J", message, luo.flb_page.phys)

    def _check_scratch_type(self, scratch: list[ScratchArea], when: str) -> None:
        with self._checking("INV-3", SENDER):
            for area in scratch:
                for phys, kind in self._linux.migratetypes(area.phys, area.size) if area.size else []:
                    if kind != MIGRATE_CMA:
                        message = f"a pageblock of scratch has the migratetype {kind} instead of CMA"
                        self._violate("INV-3", SENDER, when, message, phys)

    # ---- the kernel that receives: early boot --------------------------------------------------

    def _in_scratch(self, start: int, end: int) -> bool:
        received = self.state.kernel.received
        return received is None or lies_in(received.scratch, start, end)

    def _start_kernel(self, r: Registers) -> None:
        """x86_64_start_kernel(boot_params), with the address as the loader gave it."""
        if self.state.kernel.received is None:
            return
        with self._checking("INV-32", RECEIVER):
            at = r["rdi"]
            raw = self.machine.memory.read(at, PAGE_SIZE).tobytes()
            if raw[0x202:0x206] != b"HdrS":
                raise UnknownLayout(f"there is no boot_params at {at:#x}")

            def word(offset: int, high: int) -> int:
                return int.from_bytes(raw[offset : offset + 4], "little") | (
                    int.from_bytes(raw[high : high + 4], "little") << 32
                )

            initrd, size, cmdline = word(0x218, 0x0C0), word(0x21C, 0x0C4), word(0x228, 0x0C8)
            start, end = self._linux.image()
            for what, low, high in (
                ("boot_params", at, at + PAGE_SIZE),
                ("the initrd", initrd, initrd + size),
                ("the command line", cmdline, cmdline + 1),
                ("the kernel's image", start, end),
            ):
                if low < high and low and not self._in_scratch(low, high):
                    self._violate("INV-32", RECEIVER, "K", f"{what} of the new kernel is not in scratch", low)

    def _adopt(self) -> None:
        """K: the entry of kho_memory_init."""
        k = self.state.kernel
        if k.received is None:
            return
        k.adopting = True
        with self._checking("INV-33", RECEIVER):
            preserved = k.received.handover.preserved
            for region in self._linux.memblock()[1]:
                if (
                    not region.flags & RSRV_KERN
                    or region.end <= FIRST_MIB
                    or preserved.covers(region.base, region.end)
                ):
                    continue
                if not self._in_scratch(region.base, region.end):
                    message = f"{region.size:#x} bytes are allocated outside scratch"
                    self._violate("INV-33", RECEIVER, "K", message, region.base)
        with self._checking("INV-36", RECEIVER):
            if not self._linux.flag("kho_scratch_only"):
                self._scratch_only_violation(
                    "K", "allocations are not limited to scratch before memory is adopted"
                )

    def _scratch_only_violation(self, when: str, message: str) -> None:
        where = self._linux.where(self._linux.symbol("kho_scratch_only"))
        self._violate("INV-36", RECEIVER, when, message, where)

    def _scratch_only(self, r: Registers) -> None:
        if self.state.kernel.freeing:
            with self._checking("INV-36", RECEIVER):
                self._scratch_only_violation("F", "allocations are limited to scratch again")

    def _free_all(self, r: Registers) -> None:
        """memblock_free_all: everything preserved must be reserved by now."""
        k = self.state.kernel
        if k.received is None or not k.adopting:
            return
        with self._checking("INV-34", RECEIVER):
            regions = self._linux.memblock()[1]
            base = np.array([g.base for g in regions], np.uint64)
            end = np.array([g.end for g in regions], np.uint64)
            noinit = np.array([bool(g.flags & RSRV_NOINIT) for g in regions])
            # neighbours of one kind are one region, as a block may lie in several
            join = np.flatnonzero(~((base[1:] == end[:-1]) & (noinit[1:] == noinit[:-1]))) + 1
            first = np.concatenate(([0], join))
            last = np.concatenate((join, [len(base)])) - 1
            base, end, noinit = base[first], end[last], noinit[first]
            preserved = k.received.handover.preserved
            low = preserved.phys
            high = low + (np.uint64(PAGE_SIZE) << preserved.order.astype(np.uint64))
            at = np.searchsorted(base, low, side="right").astype(np.int64) - 1
            good = (at >= 0) & (high <= end[at]) & noinit[at]
            for phys in low[~good].tolist():
                message = "a preserved block is not reserved, or not as NOINIT, when memory is freed"
                self._violate("INV-34", RECEIVER, "F", message, phys)

    def _free_pages(self, r: Registers) -> None:
        """memblock_free_pages: the first page goes to the page allocator."""
        k = self.state.kernel
        if k.freeing or not k.adopting:
            return
        k.freeing = True
        with self._checking("INV-36", RECEIVER):
            if self._linux.flag("kho_scratch_only"):
                self._scratch_only_violation("F", "memory is freed while allocations are limited to scratch")

    def _adopted(self) -> None:
        """F: memblock_free_all has returned."""
        k = self.state.kernel
        if k.received is None:
            return
        k.freeing = True
        with self._checking("INV-36", RECEIVER):
            if self._linux.flag("kho_scratch_only"):
                self._scratch_only_violation(
                    "F", "allocations are still limited to scratch after memory was freed"
                )
        with self._checking("INV-35", RECEIVER):
            self._check_pages()

    def struct_pages(self) -> StructPages | None:
        """Where the running kernel's struct pages are; None where that is not known."""
        try:
            return self._linux.struct_pages()
        except (UnknownLayout, AddressError):
            return None

    def _check_pages(self) -> None:
        """INV-35 by `kho.check`, with the preserved blocks as they were at J."""
        k = self.state.kernel
        assert k.received is not None
        linux = self._linux
        subject = kho_check.Subject(
            k.received.handover, "F", old_scratch=k.received.scratch, page_states=linux.page_states()
        )
        report = kho_check.run(subject, {"INV-35": kho_check.TABLE["INV-35"]})
        if "INV-35" in report.not_checked:
            raise UnknownLayout(report.not_checked["INV-35"])
        for violation in report.violations:
            self._violate("INV-35", RECEIVER, "F", violation.message, violation.phys)
        heads = k.received.handover.preserved.phys
        # Linux 7.2 leaves them the one reference that each struct page begins with
        count = linux.refcount(heads)
        for phys in heads[(count < 0) | (count > 1)].tolist():
            self._violate("INV-35", RECEIVER, "F", "a preserved page that nobody restored is in use", phys)

    def _kho_init(self, r: Registers) -> None:
        """fs_initcall: all struct pages are initialised, LUO has parsed its state."""
        k = self.state.kernel
        if k.received is None or not k.adopting:
            return
        k.initialised = True
        with self._checking("INV-35", RECEIVER):
            self._linux.check_struct_pages()
            carry = self._linux.magic_pages()
            heads = k.received.handover.preserved.phys
            restored = np.array(list(k.restored), np.uint64)
            for phys in np.setdiff1d(carry, heads).tolist():
                self._violate("INV-35", RECEIVER, "F", "a page that is not preserved carries the magic", phys)
            for phys in np.setdiff1d(np.setdiff1d(heads, restored), carry).tolist():
                message = "the first page of a preserved block lost its magic before it was restored"
                self._violate("INV-35", RECEIVER, "F", message, phys)
        if k.received.luo is not None:
            with self._checking("INV-39", RECEIVER):
                linux = self._linux
                at = linux.symbol("luo_global") + 16  # enabled, luo_ser_out, liveupdate_num
                number = linux.number(at)
                if number != k.received.number:
                    message = (
                        f"the new kernel took {number} for the live update number, not {k.received.number}"
                    )
                    self._violate("INV-39", RECEIVER, "run", message, linux.where(at))

    def _add_subtree(self, r: Registers) -> None:
        """kho_add_subtree(name, blob, size)."""
        k = self.state.kernel
        if k.received is None or not k.initialised:
            return
        with self._checking("INV-39", RECEIVER):
            linux = self._linux
            name = linux.text(r["rdi"], 32)
            if name == "LUO":
                if linux.text(r["rsi"], 8) != LUO_COMPATIBLE:
                    raise UnknownLayout("the LUO state has another version")
                number, expected = linux.number(r["rsi"] + 8), k.received.number + 1
                if number != expected:
                    message = f"the next live update number is {number}, not {expected}"
                    self._violate("INV-39", RECEIVER, "run", message, linux.where(r["rsi"]))
            elif name == "kexec-metadata" and k.received.kexec_count is not None:
                if linux.number(r["rsi"], 4) != 1:
                    raise UnknownLayout("the kexec metadata have another version")
                count, expected = linux.number(r["rsi"] + 69, 4), k.received.kexec_count + 1
                if count != expected:
                    message = f"the next kexec count is {count}, not {expected}"
                    self._violate("INV-39", RECEIVER, "run", message, linux.where(r["rsi"]))

    # ---- restoring -----------------------------------------------------------------------------

    def _restore(self, r: Registers) -> None:
        """kho_restore_page(phys, is_folio)."""
        k = self.state.kernel
        if k.received is None or len(k.restored) > RESTORES_MAX:
            return
        phys = r["rdi"]
        key = (k.generation, RECEIVER)
        if len(k.restored) == RESTORES_MAX:
            k.restored[phys] = 0
            k.managed = None
            reason = f"more than {RESTORES_MAX} blocks were restored, too many to watch each"
            self.state.unknown.setdefault(key, {}).update(dict.fromkeys(("INV-37", "INV-38"), reason))
            symbols = self._symbols()
            at = symbols.address("kho_restore_page") if symbols is not None else None
            if at is not None:
                self._remove(at)
            return
        order = k.received.handover.preserved.orders_at(np.array([phys], np.uint64))[0]
        with self._checking("INV-37", RECEIVER):
            if phys in k.restored:
                self._violate("INV-37", RECEIVER, "run", "a block is restored again", phys)
                return
            if order < 0:
                self._violate("INV-37", RECEIVER, "run", "a block is restored that was not preserved", phys)
                return
        k.restored[phys] = 1 << int(order)
        if not k.deserialized:
            return  # while a kernel boots, managed memory grows for other reasons too
        with self._checking("INV-38", RECEIVER):
            if k.managed is None:
                k.managed = self._linux.number(self._linux.symbol("_totalram_pages"))
                k.managed_blocks = 0
            k.managed_phys = phys
            k.managed_blocks += 1 << int(order)

    def _managed_changes(self, r: Registers) -> None:
        """free_reserved_area: the number of managed pages is about to change for another reason."""
        self._check_managed()

    def _check_managed(self) -> None:
        k = self.state.kernel
        if k.managed is None:
            return
        with self._checking("INV-38", RECEIVER):
            grown = self._linux.number(self._linux.symbol("_totalram_pages")) - k.managed
            if grown != k.managed_blocks:
                message = f"{k.managed_blocks} pages were restored, managed memory grew by {grown}"
                self._violate("INV-38", RECEIVER, "run", message, k.managed_phys)
        k.managed = None

    # ---- /dev/liveupdate, sessions and files ---------------------------------------------------

    def _open(self, r: Registers) -> None:
        self.state.kernel.opening = r["rsi"]

    def _deserialize(self, r: Registers) -> None:
        """luo_session_deserialize: luo_open has found the device free."""
        k = self.state.kernel
        k.deserialized = True
        self._mutates(r)
        with self._checking("INV-46", RECEIVER):
            if k.opened is not None and k.opened != k.opening:
                where = self._linux.where(k.opening or 0)
                self._violate("INV-46", RECEIVER, "run", "/dev/liveupdate is opened while it is open", where)

    def _ioctl(self, r: Registers) -> None:
        """luo_ioctl(file, …): whoever calls it has opened the device."""
        k = self.state.kernel
        with self._checking("INV-46", RECEIVER):
            if k.opened is not None and k.opened != r["rdi"]:
                where = self._linux.where(r["rdi"])
                self._violate("INV-46", RECEIVER, "run", "two open files of /dev/liveupdate are used", where)
        k.opened = r["rdi"]
        self._compare()

    def _release(self, r: Registers) -> None:
        k = self.state.kernel
        if k.opened in (None, r["rsi"]):
            k.opened = None
        self._compare()

    def _compare(self) -> None:
        """INV-40: once, when the sessions have been built."""
        k = self.state.kernel
        if k.compared or not k.deserialized or k.received is None or k.received.luo is None:
            return
        k.compared = True
        with self._checking("INV-40", RECEIVER):
            self._check_incoming(self._linux.sessions("incoming"), k.received.luo)

    def _check_incoming(self, sessions: list[LuoSession], luo: Luo) -> None:
        linux = self._linux
        names, expected = [s.name for s in sessions], [s.name for s in luo.sessions]
        if names != expected:
            at = next((i for i, (a, b) in enumerate(zip(names, expected, strict=False)) if a != b),
                      min(len(names), len(expected)))  # fmt: skip
            where = linux.where(sessions[at].address) if at < len(sessions) else luo.sessions[at].phys
            message = f"the sessions are not those serialized: number {at} is another one"
            self._violate("INV-40", RECEIVER, "run", message, where)
            return

        def plain(file: LuoFile) -> tuple[int, int, str]:
            return file.token, file.data, file.compatible

        for one, other in zip(sessions, luo.sessions, strict=True):
            there = [plain(f) for f in one.files]
            sent = [(f.token, f.data, f.compatible) for f in other.files]
            if there != sent:
                at = next((i for i, (a, b) in enumerate(zip(there, sent, strict=False)) if a != b),
                          min(len(there), len(sent)))  # fmt: skip
                where = linux.where(one.files[at].address) if at < len(there) else other.files[at].phys
                message = (
                    f'the files of session "{one.name}" are not those serialized: number {at} is another one'
                )
                self._violate("INV-40", RECEIVER, "run", message, where)

    def _session_retrieve(self, r: Registers) -> None:
        with self._checking("INV-42", RECEIVER):
            self.state.kernel.asking = self._linux.text(r["rdi"], NAME_SIZE)

    def _session_granted(self, r: Registers) -> None:
        """luo_session_getfile(session): a session becomes a file, a new one or one that was asked for."""
        k = self.state.kernel
        self._mutates(r)
        asked, k.asking = k.asking, None
        if asked is None or k.received is None:
            return
        with self._checking("INV-42", RECEIVER):
            linux = self._linux
            name, where = linux.text(r["rdi"], NAME_SIZE), linux.where(r["rdi"])
            if name != asked or name not in k.received.names:
                self._violate(
                    "INV-42", RECEIVER, "run", f'"{asked}" was asked for, session "{name}" is given', where
                )
            elif name in k.granted:
                self._violate("INV-42", RECEIVER, "run", f'session "{name}" is given a second time', where)
            k.granted.add(name)

    def _file(self, handle: int) -> SerializedFile | None:
        received = self.state.kernel.received
        return None if received is None else received.files.get(handle)

    def _retrieve(self, r: Registers) -> None:
        """memfd_luo_retrieve(args)."""
        k = self.state.kernel
        if k.received is None:
            return
        with self._checking("INV-41", RECEIVER):
            handle = self._linux.number(r["rdi"] + 24)
            file = self._file(handle)
            if file is None:
                self._violate(
                    "INV-41", RECEIVER, "run", "a file is retrieved that was not serialized", handle
                )
            elif handle in k.retrieved or handle in k.finished:
                message = f'the file {file.token:#x} of session "{file.session}" is retrieved again'
                self._violate("INV-41", RECEIVER, "run", message, handle)
            elif file.memfd is not None:
                self._check_contents(file, file.memfd)
            k.retrieved.add(handle)

    def _check_contents(self, file: SerializedFile, memfd: Memfd) -> None:
        """INV-26: nothing has written to the file since J."""
        k = self.state.kernel
        assert k.received is not None
        with self._checking("INV-26", RECEIVER):
            for head, order in zip(memfd.folio_phys.tolist(), memfd.folio_order.tolist(), strict=True):
                for phys in range(head, head + (PAGE_SIZE << max(order, 0)), PAGE_SIZE):
                    if self._changed(k.received.snapshot, phys):
                        of = f'file {file.token:#x} of session "{file.session}"'
                        message = f"a page of {of} changed since the jump"
                        self._violate("INV-26", RECEIVER, "run", message, phys)

    def _finish_files(self, r: Registers) -> None:
        """luo_file_finish(file_set)."""
        k = self.state.kernel
        self._mutates(r)
        if k.received is None:
            return
        self._finish_complete()
        with self._checking("INV-43", RECEIVER):
            # most sessions are closed after their finish, with no file left
            files = self._linux.files(r["rdi"]) if self._linux.number(r["rdi"] + 72) else []
            k.finishing = [f.data for f in files]
            k.finishing_all = len(files)
        if not k.finishing_all:
            self._discard_if_new("INV-43", bool(k.finished))

    def _discard_if_new(self, id: str, keep: bool) -> None:
        if not keep:
            self.state.checked.get((self.state.kernel.generation, RECEIVER), set()).discard(id)

    def _finish_complete(self) -> None:
        """A finish that began must have gone on to its end; one that was refused has not begun."""
        k = self.state.kernel
        if k.finishing and len(k.finishing) != k.finishing_all:
            message = f"{len(k.finishing)} of {k.finishing_all} files of a session were not finished"
            self._violate("INV-43", RECEIVER, "run", message, k.finishing[-1])
        k.finishing, k.finishing_all = [], 0

    def _finish(self, r: Registers) -> None:
        """memfd_luo_finish(args)."""
        k = self.state.kernel
        if k.received is None:
            return
        with self._checking("INV-43", RECEIVER):
            handle = self._linux.number(r["rdi"] + 24)
            if self._file(handle) is None:
                self._violate("INV-43", RECEIVER, "run", "a file is finished that was not serialized", handle)
            elif handle in k.finished:
                self._violate("INV-43", RECEIVER, "run", "a file is finished again", handle)
            elif not k.finishing or k.finishing[-1] != handle:
                message = "a file is finished out of turn, or without finish of its session"
                self._violate("INV-43", RECEIVER, "run", message, handle)
            if handle in k.finishing:
                k.finishing.remove(handle)
            k.finished.add(handle)

    # ---- the end of a kernel -------------------------------------------------------------------

    def _conclude(self, when: str) -> None:
        """The kernel is left, or the run is over."""
        k = self.state.kernel
        if k.concluded:
            return
        k.concluded = True
        if when == "end" and k.received is not None and k.initialised:
            self._check_scratch_type(k.received.scratch, when)
        if k.received is None or not k.initialised:
            return
        self._check_managed()
        self._finish_complete()
        with self._checking("INV-36", RECEIVER):
            if self._linux.flag("kho_scratch_only"):
                self._scratch_only_violation("run", "allocations are limited to scratch again")
        self._check_flb_finish()
        with self._checking("INV-45", RECEIVER):
            self._check_left()

    def _check_left(self) -> None:
        """INV-45, and of INV-37 that what was restored carries the magic no more."""
        k, linux = self.state.kernel, self._linux
        assert k.received is not None
        linux.check_struct_pages()
        carry = linux.magic_pages()
        restored = np.array([p for p, pages in k.restored.items() if pages], np.uint64)
        if len(restored):
            for phys in np.intersect1d(carry, restored).tolist():
                self._violate("INV-37", RECEIVER, "run", "a restored block still carries the magic", phys)
        head = linux.session_header("incoming")
        sessions = k.received.luo.sessions if k.received.luo is not None else []
        if sessions and (not k.deserialized or linux.number(head)):
            raise UnknownLayout(OBSERVED["INV-45"])
        for phys in np.setdiff1d(np.intersect1d(carry, k.received.consumed), restored).tolist():
            self._violate("INV-45", RECEIVER, "run", "a page of a finished session is still preserved", phys)
        for phys in np.setdiff1d(carry, k.received.handover.preserved.phys).tolist():
            self._violate("INV-45", RECEIVER, "run", "a page that is not preserved carries the magic", phys)

    def _check_flb_finish(self) -> None:
        """INV-44: an FLB of which all files are finished is finished itself."""
        k = self.state.kernel
        luo = k.received.luo if k.received is not None else None
        if luo is None or luo.flb_page is None or not k.flbs:
            return
        with self._checking("INV-44", RECEIVER):
            if not luo.sessions or len(k.finished) < len(k.received.files if k.received else ()):
                return
            names = {flb.compatible for flb in luo.flb_page.flbs}
            for flb, name in k.flb_names.items():
                if name in names and not k.flb_events["finish", flb]:
                    message = f'FLB "{name}" is not finished, and its files are'
                    self._violate("INV-44", RECEIVER, "run", message, luo.flb_page.phys)


def _received(handover: Handover, snapshot: Snapshot) -> Received:
    luo = Luo.read(handover)
    files: dict[int, SerializedFile] = {}
    pages: list[Words] = []
    single: list[int] = []
    if luo is not None:
        single.append(luo.phys)
        single += [b.phys for b in luo.chain.blocks] if luo.chain else []
        for session in luo.sessions:
            single += [b.phys for b in session.chain.blocks] if session.chain else []
            for file in session.files:
                memfd = file.memfd
                files[file.data] = SerializedFile(session.name, file.token, file.data, file.compatible, memfd)
                if memfd is not None:
                    single.append(memfd.phys)
                    pages.append(memfd.folio_phys)
                    if memfd.area is not None and not memfd.area.problems:
                        single += memfd.area.chunks
                        pages.append(memfd.area.blocks)
    consumed = np.unique(np.concatenate([np.array(single, np.uint64), *pages]))
    return Received(
        handover,
        list(handover.scratch or []),
        luo.liveupdate_num if luo is not None else 0,
        handover.metadata.kexec_count if handover.metadata is not None else None,
        luo,
        frozenset(s.name for s in luo.sessions) if luo is not None else frozenset(),
        files,
        consumed,
        snapshot,
    )


__all__ = ["OBSERVED", "Received", "RuntimeChecker", "State"]
