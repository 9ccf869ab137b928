"""Invariants that show only while Linux runs: silent on good runs, and each broken on purpose.

`BREAKS` maps each id to its ways to break it, on one real update that is booted once: a way starts from a
snapshot, tampers with the running kernel's memory or feeds the checker a call that never was (where breaking
a real Linux would stop it first), runs on, and exactly that id must be reported, with its address.
`python -m tests.linux.test_invariants` prints the table of docs/invariants.md.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from emu.debug import guest, linux_restore, outgoing
from emu.debug.invariants import FUNCTIONS, OBSERVED, RuntimeChecker
from emu.debug.linux import Linux
from emu.debug.linux_state import State
from emu.debug.luo_rules import Session
from emu.debug.symbols import Symbols
from emu.debug.update import Update
from emu.machine import Machine, Snapshot, StopKind
from kho.abi import RESTORE_MAGIC
from kho.handover import Handover
from luo.check import TABLE
from luo.state import Luo
from tests.linux import updates
from tests.linux.build import CONFIGS, LinuxBuild, required
from tests.luo import test_invariants as on_images

pytestmark = pytest.mark.linux

RICH = (
    "S:one F:0x1:4K:all F:0x2:40K:p1+3:seals=6 F:0x3:4M:all:mmap "
    "S:two F:0x5:0:none F:0x6:12388:all:pos=1234 S:three"
)
"""Sessions with several files (sealed, sparse, mapped in huge pages, empty, of odd size) and with none."""
HUGE = "kho_scratch=64M,0,0 transparent_hugepage_shmem=advise"
ALWAYS = [3, 17, 26, 27, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 45, 46, 47, 48, 49, 50]
"""Numbers of what is checked in every run that serializes, retrieves and finishes files."""
ROOT = Path(__file__).parent.parent.parent


# --- good runs -------------------------------------------------------------------------------------


def test_a_chain_of_good_updates(linux: LinuxBuild) -> None:
    result = updates.run(
        linux, memory=256 << 20, cmdline=HUGE, before=[f"lu s1 {RICH}"], after=[f"lu s2 {RICH}"], updates=2,
        max_instructions=20_000_000_000,
    )  # fmt: skip
    assert result.ok and result.violations == [], result.reasons
    assert {"9": 2} in [
        f["orders"] for f in result.updates[0]["sessions"][0]["files"]
    ]  # huge pages are there
    for u in result.updates:
        assert set(u["checked"]) >= {f"INV-{n}" for n in ALWAYS}
        assert u["not_checked"]["INV-22"] == "no serialization failed"
        assert u["not_checked"]["INV-18"] == u["not_checked"]["INV-44"] == "the kernel has no FLB"


def test_watching_changes_nothing(linux: LinuxBuild) -> None:
    """Nothing at all is observed in a raw run."""
    watched, raw = updates.run(linux), updates.run(linux, raw=True)
    assert watched.ok and set(watched.updates[0]["checked"]) >= {f"INV-{n}" for n in ALWAYS}
    assert watched.state_hash == raw.state_hash


def test_flbs(linux: LinuxBuild) -> None:
    """The kernel with LUO's own test has FLBs."""
    result = updates.run(required(CONFIGS[1]), memory=256 << 20)
    assert result.ok, result.reasons
    assert set(result.updates[0]["checked"]) >= {"INV-18", "INV-44"}


def test_too_many_blocks_to_watch(linux: LinuxBuild, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next kernel is watched again."""
    monkeypatch.setattr(linux_restore, "RESTORES_MAX", 4)
    spec = "S:one F:0x1:64K:all"
    result = updates.run(
        linux, before=[f"lu s1 {spec}"], after=[f"lu s2 {spec}"], updates=2, max_instructions=2**34
    )
    assert result.ok and result.violations == [], result.reasons
    for u in result.updates:
        assert "more than 4 blocks were restored" in u["not_checked"]["INV-37"]
        assert "more than 4 blocks were restored" in u["not_checked"]["INV-38"]
        assert "INV-45" in u["checked"]


def test_nothing_is_claimed_of_a_kernel_without_symbols(linux: LinuxBuild) -> None:
    with updates.update(linux) as u:
        checker = RuntimeChecker(u.machine, [u.symbols[0], None])
        checker.moment("J", 0, None)
        checker.moment("K", 1, None)
        report = checker.report(0)
        assert report.checked == [] and report.violations == []
        assert set(report.not_checked.values()) == {"the handover could not be read at J"}
        checker = RuntimeChecker(u.machine, [None])
        checker.moment("end", 0, None)
        assert set(checker.report(0).not_checked.values()) == {"the kernel's symbols are not known"}


@pytest.mark.parametrize(
    ("symbol", "ids"),
    [
        ("memblock", {"INV-33", "INV-34"}),
        ("vmemmap_base", {"INV-3", "INV-27", "INV-35", "INV-45"}),
        ("luo_session_global", {"INV-17", "INV-40", "INV-45"}),
        ("kho_scratch_only", {"INV-36"}),
        ("memfd_luo_get_id", {"INV-17", "INV-27"}),
    ],
)
def test_a_structure_that_is_another_one_is_not_believed(
    linux: LinuxBuild, symbol: str, ids: set[str]
) -> None:
    """The symbol points into the kernel's code: nothing there is what it must be."""
    table = read_table(linux.system_map)
    table[symbol] = table["_text"] + 0x12340
    with updates.update(linux) as u:
        assert u.checker is not None
        u.checker.symbols = [Symbols(table)]
        result = u.run()
    assert result.violations == [] and result.ok, result.reasons
    not_checked = result.updates[0]["not_checked"]
    assert ids <= set(not_checked)
    assert not ids & set(result.updates[0]["checked"])


def read_table(path: Path) -> dict[str, int]:
    table: dict[str, int] = {}
    for line in path.read_text("latin-1").splitlines():
        address, _, name = line.split(" ", 2)
        table.setdefault(name, int(address, 16))
    return table


# --- one boot to break in many ways ----------------------------------------------------------------

Action = Callable[["Rig", dict[str, int]], None]


@dataclass
class Stage:
    snapshot: Snapshot
    state: State
    generation: int
    handover: Handover | None


@dataclass
class Rig:
    """A machine with the checker and nothing else attached, that goes back to stages of its run."""

    machine: Machine
    symbols: Symbols
    checker: RuntimeChecker = field(init=False)
    generation: int = 0
    handover: Handover | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    actions: dict[str, Action] = field(default_factory=dict)
    """what to do, once, before the checker sees a call"""
    stop_at: str = ""
    calls: dict[str, dict[str, int]] = field(default_factory=dict)
    """registers of the last call of each function"""

    boot_params: int = 0

    MOMENTS: ClassVar = {"machine_kexec": "J", "kho_memory_init": "K", "mem_init": "F"}
    STOPS = ("kernel_kexec", "start_kernel", "misc_open")

    def __post_init__(self) -> None:
        for name in (*FUNCTIONS, *self.MOMENTS, *self.STOPS):
            if self.symbols.address(name) is not None:
                self.machine.probe(self.address(name), self._entered(name))
        self.checker = RuntimeChecker(self.machine, [self.symbols])

    def address(self, name: str) -> int:
        address = self.symbols.address(name)
        assert address is not None, name
        return address

    def _entered(self, name: str) -> Callable[[Machine, int], bool]:
        def entered(m: Machine, address: int) -> bool:
            registers = self.calls[name] = m.cpus[0].registers()
            action = self.actions.pop(name, None)
            if action is not None:
                action(self, registers)
            if name in self.MOMENTS:
                self._moment(self.MOMENTS[name])
            return name == self.stop_at

        return entered

    def _moment(self, when: str) -> None:
        if when == "J":
            scratch = outgoing.scratch(self.machine, self.symbols)
            self.handover = Handover.read(self.machine.memory, scratch=scratch)
        self.checker.moment(when, self.generation, self.handover if when == "J" else None)
        if when == "J":
            self.generation += 1

    def run_to(self, function: str) -> None:
        self.stop_at = function
        stop = self.machine.run(max_instructions=updates.LIMIT)
        self.stop_at = ""
        assert stop.kind is StopKind.BREAKPOINT, stop

    def run_out(self) -> None:
        self.stop_at = ""
        stop = self.machine.run(max_instructions=updates.LIMIT)
        assert stop.kind is StopKind.POWER_OFF, stop
        self.checker.moment("end", self.generation, None)

    def keep(self, name: str) -> None:
        self.stages[name] = Stage(
            self.machine.snapshot(), copy.deepcopy(self.checker.state), self.generation, self.handover
        )

    def go_back(self, name: str) -> None:
        stage = self.stages[name]
        self.machine.restore(stage.snapshot)
        self.checker.state = copy.deepcopy(stage.state)
        self.generation, self.handover = stage.generation, stage.handover
        self.actions.clear()
        for flb in self.checker.state.kernel.flbs:
            self.checker.flbs.learn(flb)

    # ---- looking and tampering -----------------------------------------------------------------

    @property
    def linux(self) -> Linux:
        return Linux(self.machine, self.symbols)

    @property
    def luo(self) -> Luo:
        assert self.handover is not None
        luo = Luo.read(self.handover)
        assert luo is not None
        return luo

    def put(self, phys: int, value: int, size: int = 8) -> int:
        self.machine.memory.write(phys, value.to_bytes(size, "little"), "test")
        return phys

    def set(self, virtual: int, value: int, size: int = 8) -> int:
        """Write to the kernel's memory; the physical address."""
        return self.put(guest.translate(self.machine, virtual), value, size)

    def struct_page(self, phys: int) -> int:
        return self.linux.vmemmap() + (phys >> 12) * 64

    def call(self, function: str, **registers: int) -> None:
        """Feed the checker a call that never was."""
        self.checker.entered(function, {"rdi": 0, "rsi": 0, "rdx": 0, **registers})

    def memory_with(self, *words: int) -> int:
        """Virtual address of memory that holds these words, for arguments that are structures."""
        base = self.linux.number(self.address("page_offset_base"))
        for i, word in enumerate(words):
            self.put(0x2000 + 8 * i, word)
        return base + 0x2000

    def sessions(self, which: str) -> list[Session]:
        return self.linux.sessions(which)


def boot(build: LinuxBuild, spec: str) -> Rig:
    options = updates.options(
        build, memory=128 << 20, before=[f"lu s1 {spec}"], after=[f"lu s2 {spec}"], raw=True
    )
    rig = Rig(Update(options).machine, Symbols.read(build.system_map))
    rig.run_to("kernel_kexec")
    rig.keep("A")

    # a serialization that really fails: the second file to be frozen has lost its record
    def fail(rig: Rig, r: dict[str, int]) -> None:
        rig.actions["memfd_luo_freeze"] = lambda rig, r: void(rig.set(r["rdi"] + 24, 0))

    rig.actions["memfd_luo_freeze"] = fail
    rig.stop_at = "machine_kexec"
    stop = rig.machine.run(max_instructions=updates.LIMIT)
    assert stop.kind is StopKind.POWER_OFF, stop
    rig.keep("failed")
    rig.go_back("A")
    rig.run_to("start_kernel")
    rig.boot_params = rig.calls["x86_64_start_kernel"]["rdi"]
    rig.keep("B")
    while not rig.checker.state.kernel.initialised or rig.linux.number(rig.address("luo_session_global")) < 0:
        rig.run_to("misc_open")
    rig.keep("user")
    return rig


def void(_: object) -> None:
    """For actions made of an expression."""


SPEC = "S:one F:0x1:8K:all F:0x2:4K:all F:0x3:4K:all S:two F:0x4:4K:all"


@pytest.fixture(scope="module")
def rig(linux: LinuxBuild) -> Iterator[Rig]:
    found = boot(linux, SPEC)
    yield found
    found.machine.close()


@pytest.fixture(scope="module")
def flb_rig(linux: LinuxBuild) -> Iterator[Rig]:
    found = boot(required(CONFIGS[1]), SPEC)
    yield found
    found.machine.close()


Break = Callable[[Rig], int | None]
"""Break one invariant; returns the address that must be reported. The rig is at its stage."""
BREAKS: defaultdict[str, list[tuple[str, Break]]] = defaultdict(list)
"""Id -> (stage, way)."""


def breaks(id: str, stage: str) -> Callable[[Break], Break]:
    def register(function: Break) -> Break:
        BREAKS[id].append((stage, function))
        return function

    return register


def at_jump(rig: Rig, action: Callable[[], int | None]) -> int | None:
    """Run to J, do something before the checker looks, and return what that gives."""
    found: list[int | None] = []
    rig.actions["machine_kexec"] = lambda rig, r: found.append(action())
    rig.run_to("machine_kexec")
    return found[0]


# --- the kernel that hands over --------------------------------------------------------------------


@breaks("INV-3", "A")
def pageblock_of_scratch_is_unmovable(rig: Rig) -> int | None:
    def tamper() -> int:
        scratch = outgoing.scratch(rig.machine, rig.symbols)
        assert scratch is not None
        area = int.from_bytes(rig.machine.memory.read(scratch.phys, 8).tobytes(), "little")
        root = rig.linux.pointer(rig.linux.pointer(rig.address("mem_section")))
        usage = rig.linux.pointer(root + 16 * (area >> 27) + 8)
        rig.set(usage + 24 + (area >> 21 & 63), 0, 1)
        return area

    return at_jump(rig, tamper)


@breaks("INV-17", "A")
def session_name_twice(rig: Rig) -> int | None:
    one, two = rig.sessions("outgoing")
    phys = guest.translate(rig.machine, two.address)
    rig.machine.memory.write(phys, one.name.encode() + b"\0", "test")
    rig.run_to("machine_kexec")
    return phys


@breaks("INV-17", "A")
def token_twice(rig: Rig) -> int | None:
    first, second, _ = rig.sessions("outgoing")[0].files
    rig.set(second.address + 80, first.token)
    rig.run_to("machine_kexec")
    return guest.translate(rig.machine, second.address)


@breaks("INV-17", "A")
def file_in_two_sessions(rig: Rig) -> int | None:
    one, two = rig.sessions("outgoing")
    rig.set(two.files[0].address + 8, one.files[0].file)
    rig.run_to("machine_kexec")
    return guest.translate(rig.machine, two.files[0].address)


def failed_again(rig: Rig) -> None:
    rig.checker.state.kernel.serialize = "running"
    rig.checker.sender.serialize_returned(22)


@breaks("INV-22", "failed")
def sessions_are_still_handed_over(rig: Rig) -> int | None:
    phys = rig.set(rig.linux.pointer(rig.address("luo_global") + 8) + 16, 0x1000)
    failed_again(rig)
    return phys


@breaks("INV-22", "failed")
def session_record_remains(rig: Rig) -> int | None:
    phys = rig.put(rig.linux.session_blocks() + 16, 0x656E6F) & ~7
    failed_again(rig)
    return phys


@breaks("INV-22", "failed")
def file_record_remains(rig: Rig) -> int | None:
    block = rig.linux.file_blocks(rig.sessions("outgoing")[0].file_set)
    rig.put(block + 8, 1)
    failed_again(rig)
    return block


@breaks("INV-22", "failed")
def file_unfrozen_twice(rig: Rig) -> int | None:
    session = rig.sessions("outgoing")[0]
    rig.call("__luo_file_unfreeze", rdi=session.file_set, rsi=1)
    failed_again(rig)
    return guest.translate(rig.machine, session.address)


@breaks("INV-22", "failed")
def sessions_stay_locked(rig: Rig) -> int | None:
    phys = rig.set(rig.address("luo_session_serialize_rwsem"), 1)
    failed_again(rig)
    return phys


def record(rig: Rig, number: int = 0) -> int:
    """Physical address of the record of a file of the first outgoing session."""
    return rig.sessions("outgoing")[0].files[number].data


@breaks("INV-27", "A")
def record_has_another_size(rig: Rig) -> int | None:
    phys = record(rig)
    rig.put(phys + 8, 4097)
    rig.run_to("machine_kexec")
    return phys


@breaks("INV-27", "A")
def file_grows(rig: Rig) -> int | None:
    inode = rig.linux.inode(rig.sessions("outgoing")[0].files[0].file)
    preserved = rig.checker.state.kernel.preserved[record(rig)]
    (at,) = preserved.size_at
    rig.set(inode + at, 12288)
    rig.run_to("machine_kexec")
    return guest.translate(rig.machine, inode)


@breaks("INV-27", "A")
def page_is_replaced(rig: Rig) -> int | None:
    """The first two folios change places."""
    phys = record(rig)
    memory = rig.machine.memory
    chunk = int.from_bytes(memory.read(phys + 32, 8).tobytes(), "little")
    array = int.from_bytes(memory.read(chunk + 8, 8).tobytes(), "little")
    one, two = (int.from_bytes(memory.read(array + at, 8).tobytes(), "little") for at in (0, 16))
    rig.put(array, two)
    rig.put(array + 16, one)
    rig.run_to("machine_kexec")
    return phys


@breaks("INV-27", "A")
def pin_is_lost(rig: Rig) -> int | None:
    def tamper() -> int:
        phys = record(rig)
        memory = rig.machine.memory
        chunk = int.from_bytes(memory.read(phys + 32, 8).tobytes(), "little")
        array = int.from_bytes(memory.read(chunk + 8, 8).tobytes(), "little")
        folio = (int.from_bytes(memory.read(array, 8).tobytes(), "little") & (1 << 52) - 1) << 12
        rig.set(rig.struct_page(folio) + 52, 2, 4)
        return folio

    return at_jump(rig, tamper)


@breaks("INV-47", "A")
def file_is_preserved_after_serialization(rig: Rig) -> int | None:
    def call(rig: Rig, r: dict[str, int]) -> None:
        rig.call("luo_preserve_file", rdi=file_set)

    file_set = rig.sessions("outgoing")[0].file_set
    rig.actions["device_shutdown"] = call
    rig.run_to("machine_kexec")
    return guest.translate(rig.machine, file_set)


@breaks("INV-47", "A")
def sessions_are_unlocked(rig: Rig) -> int | None:
    return at_jump(rig, lambda: rig.set(rig.address("luo_session_serialize_rwsem"), 0))


@breaks("INV-48", "A")
def freeze_during_shutdown(rig: Rig) -> int | None:
    def call(rig: Rig, r: dict[str, int]) -> None:
        rig.call("memfd_luo_freeze", rdi=rig.memory_with(0, 0, 0, 0x5000))

    rig.actions["machine_kexec"] = call
    rig.run_to("machine_kexec")
    return 0x5000


@breaks("INV-48", "A")
def freeze_with_kexec_in_progress(rig: Rig) -> int | None:
    """At the first file only."""

    def tamper(rig: Rig, r: dict[str, int]) -> None:
        at = rig.address("kexec_in_progress")
        rig.set(at, 1, 1)
        rig.actions["memfd_luo_freeze"] = lambda rig, r: void(rig.set(at, 0, 1))

    rig.actions["memfd_luo_freeze"] = tamper
    rig.run_to("machine_kexec")
    return record(rig)


@breaks("INV-49", "A")
def metadata_changes_after_serialization(rig: Rig) -> int | None:
    return at_jump(rig, lambda: rig.put(record(rig), 7) & -4096)


@breaks("INV-49", "A")
def luo_state_changes_after_serialization(rig: Rig) -> int | None:
    return at_jump(rig, lambda: rig.set(rig.linux.pointer(rig.address("luo_global") + 8) + 8, 2) & -4096)


@breaks("INV-50", "A")
def sessions_without_serialization(rig: Rig) -> int | None:
    """`liveupdate=off` at run time: the kexec goes past LUO, and then sessions_pa is set all the same."""
    blocks = rig.linux.session_blocks()
    rig.set(rig.address("luo_global"), 0, 1)
    return at_jump(
        rig, lambda: rig.set(rig.linux.pointer(rig.address("luo_global") + 8) + 16, blocks) & -4096
    )


# --- early boot of the kernel that receives --------------------------------------------------------


@breaks("INV-32", "B")
def command_line_outside_scratch(rig: Rig) -> int | None:
    at = rig.boot_params
    rig.put(at + 0x228, 0x200000, 4)
    rig.call("x86_64_start_kernel", rdi=at)
    return 0x200000


@breaks("INV-32", "B")
def initrd_outside_scratch(rig: Rig) -> int | None:
    at = rig.boot_params
    rig.put(at + 0x218, 0x300000, 4)
    rig.call("x86_64_start_kernel", rdi=at)
    return 0x300000


@breaks("INV-32", "B")
def boot_params_outside_scratch(rig: Rig) -> int | None:
    page = rig.machine.memory.read(rig.boot_params, 4096).tobytes()
    rig.machine.memory.write(0x202000, page, "test")
    rig.call("x86_64_start_kernel", rdi=0x202000)
    return 0x202000


def reserved_region(rig: Rig, wanted: Callable[[Any], bool]) -> tuple[int, int]:
    """(virtual address of its entry, base) of a region of memblock.reserved."""
    array = rig.linux.pointer(rig.address("memblock") + 56 + 24)
    for number, region in enumerate(rig.linux.memblock()[1]):
        if wanted(region):
            return array + 24 * number, region.base
    raise AssertionError("no such region")


@breaks("INV-33", "B")
def allocation_outside_scratch(rig: Rig) -> int | None:
    """What the firmware's tables occupy looks like an allocation."""
    found: list[int] = []

    def tamper(rig: Rig, r: dict[str, int]) -> None:
        end = rig.machine.memory.ranges[-1][1]
        entry, base = reserved_region(rig, lambda g: g.base >= end - (1 << 20) and not g.flags)
        rig.set(entry + 16, 0x20, 4)
        found.append(base)

    rig.actions["kho_memory_init"] = tamper
    rig.run_to("kho_memory_init")
    return found[0]


@breaks("INV-34", "B")
def preserved_block_without_noinit(rig: Rig) -> int | None:
    luo_phys = rig.luo.phys
    rig.actions["memblock_free_all"] = lambda rig, r: void(
        rig.set(reserved_region(rig, lambda g: g.base <= luo_phys < g.end)[0] + 16, 0, 4)
    )
    rig.run_to("memblock_free_all")
    return None


@breaks("INV-34", "B")
def preserved_block_not_reserved(rig: Rig) -> int | None:
    """The region that begins with the root FDT begins a page later."""
    assert rig.handover is not None
    found: list[int] = []

    def tamper(rig: Rig, r: dict[str, int]) -> None:
        entry, base = reserved_region(rig, lambda g: bool(g.flags & 0x10))
        rig.set(entry, base + 4096)
        rig.set(entry + 8, rig.linux.number(entry + 8) - 4096)
        found.append(base)

    rig.actions["memblock_free_all"] = tamper
    rig.run_to("memblock_free_all")
    return found[0]


@breaks("INV-35", "B")
def struct_page_without_magic(rig: Rig) -> int | None:
    phys = rig.luo.phys

    def tamper(rig: Rig, r: dict[str, int]) -> None:
        rig.set(rig.struct_page(phys) + 40, 0)

    rig.actions["mem_init"] = tamper
    rig.run_to("mem_init")
    return phys


@breaks("INV-35", "B")
def struct_page_in_use(rig: Rig) -> int | None:
    phys = rig.luo.phys

    def tamper(rig: Rig, r: dict[str, int]) -> None:
        rig.set(rig.struct_page(phys) + 52, 2, 4)

    rig.actions["mem_init"] = tamper
    rig.run_to("mem_init")
    return phys


@breaks("INV-35", "B")
def magic_where_nothing_is_preserved(rig: Rig) -> int | None:
    def tamper(rig: Rig, r: dict[str, int]) -> None:
        rig.set(rig.struct_page(0x300000) + 40, RESTORE_MAGIC << 32)

    rig.actions["kho_init"] = tamper
    rig.run_to("kho_init")
    return 0x300000


@breaks("INV-36", "B")
def scratch_only_is_off_too_early(rig: Rig) -> int | None:
    found: list[int] = []
    rig.actions["kho_memory_init"] = lambda rig, r: found.append(
        rig.set(rig.address("kho_scratch_only"), 0, 1)
    )
    rig.run_to("kho_memory_init")
    return found[0]


@breaks("INV-36", "B")
def scratch_only_while_memory_is_freed(rig: Rig) -> int | None:
    found: list[int] = []
    rig.actions["memblock_free_pages"] = lambda rig, r: found.append(
        rig.set(rig.address("kho_scratch_only"), 1, 1)
    )
    rig.run_to("memblock_free_pages")
    return found[0]


@breaks("INV-36", "B")
def scratch_only_afterwards(rig: Rig) -> int | None:
    found: list[int] = []
    rig.actions["mem_init"] = lambda rig, r: found.append(rig.set(rig.address("kho_scratch_only"), 1, 1))
    rig.run_to("mem_init")
    return found[0]


@breaks("INV-36", "user")
def scratch_only_again(rig: Rig) -> int | None:
    rig.call("memblock_set_kho_scratch_only")
    return guest.translate(rig.machine, rig.address("kho_scratch_only"))


@breaks("INV-39", "B")
def live_update_number_is_taken_wrong(rig: Rig) -> int | None:
    found: list[int] = []
    rig.actions["kho_init"] = lambda rig, r: found.append(rig.set(rig.address("luo_global") + 16, 5))
    rig.run_to("kho_init")
    return found[0]


@breaks("INV-39", "B")
def kexec_count_is_not_one_more(rig: Rig) -> int | None:
    found: list[int] = []
    rig.actions["kho_add_subtree"] = lambda rig, r: found.append(rig.set(r["rsi"] + 69, 9, 4) - 69)
    rig.run_to("kho_add_subtree")
    return found[0]


# --- the kernel that receives, in user space -------------------------------------------------------


@breaks("INV-26", "user")
def contents_change_before_retrieve(rig: Rig) -> int | None:
    memfd = rig.luo.sessions[0].files[0].memfd
    assert memfd is not None
    phys = int(memfd.folio_phys[1])
    updates.flip(rig.machine, phys + 5)
    rig.run_to("memfd_luo_retrieve")
    return phys


@breaks("INV-37", "user")
def block_is_restored_again(rig: Rig) -> int | None:
    """LUO's own state was restored while the kernel booted."""
    rig.call("kho_restore_page", rdi=rig.luo.phys)
    return rig.luo.phys


@breaks("INV-37", "user")
def block_is_restored_that_was_not_preserved(rig: Rig) -> int | None:
    rig.call("kho_restore_page", rdi=0x300000)
    return 0x300000


@breaks("INV-37", "user")
def restored_block_keeps_its_magic(rig: Rig) -> int | None:
    rig.actions["memfd_luo_finish"] = lambda rig, r: void(
        rig.set(rig.struct_page(rig.luo.phys) + 40, RESTORE_MAGIC << 32)
    )
    rig.run_out()
    return rig.luo.phys


@breaks("INV-38", "user")
def managed_memory_grows_too_much(rig: Rig) -> int | None:
    def tamper(rig: Rig, r: dict[str, int]) -> None:
        at = rig.address("_totalram_pages")
        rig.set(at, rig.linux.number(at) + 1)

    rig.actions["memfd_luo_finish"] = tamper
    rig.run_out()
    return list(rig.checker.state.kernel.restored)[-1]


@breaks("INV-40", "user")
def session_has_another_name(rig: Rig) -> int | None:
    session = rig.luo.sessions[1]
    rig.put(session.phys, ord("x"), 1)
    rig.actions["luo_ioctl"] = lambda rig, r: found.append(
        guest.translate(rig.machine, rig.sessions("incoming")[1].address)
    )
    found: list[int] = []
    rig.run_to("luo_session_retrieve")
    return found[0]


@breaks("INV-40", "user")
def file_has_another_token(rig: Rig) -> int | None:
    file = rig.luo.sessions[0].files[1]
    rig.put(file.phys + 56, 0x77)
    rig.actions["luo_ioctl"] = lambda rig, r: found.append(
        guest.translate(rig.machine, rig.sessions("incoming")[0].files[1].address)
    )
    found: list[int] = []
    rig.run_to("luo_session_retrieve")
    return found[0]


@breaks("INV-41", "user")
def file_is_retrieved_again(rig: Rig) -> int | None:
    handle = rig.luo.sessions[0].files[0].data
    rig.actions["luo_file_finish"] = lambda rig, r: rig.call(
        "memfd_luo_retrieve", rdi=rig.memory_with(0, 0, 0, handle)
    )
    rig.run_out()
    return handle


@breaks("INV-41", "user")
def file_is_retrieved_that_was_not_serialized(rig: Rig) -> int | None:
    rig.call("memfd_luo_retrieve", rdi=rig.memory_with(0, 0, 0, 0x5000))
    return 0x5000


@breaks("INV-42", "user")
def session_is_given_twice(rig: Rig) -> int | None:
    found: list[int] = []

    def again(rig: Rig, r: dict[str, int]) -> None:
        session = rig.sessions("incoming")[0].address
        rig.call("luo_session_retrieve", rdi=session)
        rig.call("luo_session_getfile", rdi=session)
        found.append(guest.translate(rig.machine, session))

    rig.actions["memfd_luo_retrieve"] = again
    rig.run_out()
    return found[0]


@breaks("INV-42", "user")
def another_session_is_given(rig: Rig) -> int | None:
    found: list[int] = []

    def other(rig: Rig, r: dict[str, int]) -> None:
        one, two = rig.sessions("incoming")
        rig.call("luo_session_retrieve", rdi=one.address)
        rig.call("luo_session_getfile", rdi=two.address)
        found.append(guest.translate(rig.machine, two.address))

    rig.actions["memfd_luo_retrieve"] = other
    rig.run_to("memfd_luo_retrieve")
    return found[0]


@breaks("INV-43", "user")
def file_is_finished_again(rig: Rig) -> int | None:
    handle = rig.luo.sessions[0].files[0].data
    rig.run_out()
    rig.call("memfd_luo_finish", rdi=rig.memory_with(0, 0, 0, handle))
    return handle


@breaks("INV-43", "user")
def file_is_finished_out_of_turn(rig: Rig) -> int | None:
    """Finish goes from the last file to the first; the first is there before its turn."""
    handle = rig.luo.sessions[0].files[0].data
    rig.run_to("memfd_luo_finish")
    rig.call("memfd_luo_finish", rdi=rig.memory_with(0, 0, 0, handle))
    return handle


@breaks("INV-43", "user")
def file_is_left_unfinished(rig: Rig) -> int | None:
    """After the first file, the finish of the session ends: another one begins."""
    rig.run_to("memfd_luo_finish")
    rig.call("luo_file_finish", rdi=rig.sessions("incoming")[0].file_set)
    return rig.luo.sessions[0].files[1].data


@breaks("INV-45", "user")
def block_of_a_finished_session_is_left(rig: Rig) -> int | None:
    """A file block was never restored."""
    phys = rig.luo.sessions[0].files_phys
    rig.actions["memfd_luo_finish"] = lambda rig, r: None
    rig.stop_at = ""
    rig.machine.run(max_instructions=updates.LIMIT)
    rig.set(rig.struct_page(phys) + 40, RESTORE_MAGIC << 32)
    del rig.checker.state.kernel.restored[phys]
    rig.checker.state.kernel.managed = None
    rig.checker.moment("end", rig.generation, None)
    return phys


@breaks("INV-45", "user")
def magic_appears_later(rig: Rig) -> int | None:
    rig.actions["memfd_luo_finish"] = lambda rig, r: void(
        rig.set(rig.struct_page(0x200000) + 40, RESTORE_MAGIC << 32)
    )
    rig.run_out()
    return 0x200000


@breaks("INV-46", "user")
def device_is_open_twice(rig: Rig) -> int | None:
    """While the device is open and used, luo_open finds it free."""
    found: list[int] = []

    def open_again(rig: Rig, r: dict[str, int]) -> None:
        other = rig.memory_with(0)
        rig.call("luo_open", rsi=other)
        rig.call("luo_session_deserialize")
        found.append(guest.translate(rig.machine, other))

    rig.actions["memfd_luo_retrieve"] = open_again
    rig.run_to("memfd_luo_retrieve")
    return found[0]


@breaks("INV-46", "user")
def two_files_of_the_device_are_used(rig: Rig) -> int | None:
    rig.run_to("memfd_luo_retrieve")
    other = rig.memory_with(0)
    rig.call("luo_ioctl", rdi=other)
    return guest.translate(rig.machine, other)


# --- FLBs, in the kernel that has some -------------------------------------------------------------


@breaks("INV-18", "A with FLBs")
def flb_counts_too_many(rig: Rig) -> int | None:
    flb = next(iter(rig.checker.state.kernel.flbs))
    rig.call("liveupdate_flb_put_outgoing", rdi=flb)
    rig.run_to("machine_kexec")
    page = rig.luo.flb_page
    assert page is not None
    return page.phys


@breaks("INV-44", "user with FLBs")
def flb_is_retrieved_again(rig: Rig) -> int | None:
    flb = next(iter(rig.checker.state.kernel.flbs))
    rig.checker.flbs.called("retrieve", {"rdi": rig.memory_with(flb)})
    return guest.translate(rig.machine, flb)


@breaks("INV-44", "user with FLBs")
def flb_is_finished_without_retrieve(rig: Rig) -> int | None:
    k = rig.checker.state.kernel
    flb = next(iter(k.flbs))
    k.flb_events.clear()
    rig.checker.flbs.called("finish", {"rdi": rig.memory_with(flb)})
    return guest.translate(rig.machine, flb)


@breaks("INV-44", "user with FLBs")
def flb_is_never_finished(rig: Rig) -> int | None:
    rig.stop_at = ""
    rig.machine.run(max_instructions=updates.LIMIT)
    k = rig.checker.state.kernel
    flb = next(iter(k.flbs))
    assert k.flb_events["finish", flb] == 1
    del k.flb_events["finish", flb]
    rig.checker.moment("end", rig.generation, None)
    page = rig.luo.flb_page
    assert page is not None
    return page.phys


# --- the tests -------------------------------------------------------------------------------------


CASES = [(id, stage, way) for id, ways in BREAKS.items() for stage, way in ways]


@pytest.mark.parametrize(("id", "stage", "way"), CASES, ids=[f"{id}-{w.__name__}" for id, _, w in CASES])
def test_exactly_one_is_reported(request: pytest.FixtureRequest, id: str, stage: str, way: Break) -> None:
    name, _, flbs = stage.partition(" with ")
    rig: Rig = request.getfixturevalue("flb_rig" if flbs else "rig")
    rig.go_back(name)
    expected = way(rig)
    report = rig.checker.report(0)
    assert report.violations and {v.id for v in report.violations} == {id}
    if way is preserved_block_without_noinit:
        expected = rig.luo.phys  # with its neighbours, as one region holds them
        assert expected in [v.phys for v in report.violations]
        return
    assert [v.phys for v in report.violations] == [expected]
    assert id in report.checked


def test_a_serialization_that_fails_leaves_nothing(rig: Rig) -> None:
    """A freeze really failed on the running kernel: all of INV-22 holds."""
    rig.go_back("failed")
    report = rig.checker.report(0)
    assert report.violations == [] and "INV-22" in report.checked
    assert rig.checker.state.kernel.serialize == "failed" and len(rig.checker.state.kernel.unfrozen) == 1


def test_each_stage_runs_out_without_violation(rig: Rig) -> None:
    """What is broken above is whole before it is broken."""
    rig.go_back("A")
    rig.run_out()
    report = rig.checker.report(0)
    assert report.violations == [] and set(report.checked) == {f"INV-{n}" for n in ALWAYS}


def test_everything_checked_is_broken_on_purpose() -> None:
    assert set(BREAKS) == set(OBSERVED)
    assert set(OBSERVED) <= set(TABLE)


# --- the table of docs/invariants.md ---------------------------------------------------------------

BEGIN = "<!-- table: python -m tests.linux.test_invariants -->\n"
END = "<!-- end of table -->\n"
FROM_TWO_MOMENTS = {"INV-26": "J to K, K to F", "INV-30": "J to K", "INV-49": "J to K"}


def markdown() -> str:
    """Every invariant: where it is checked, and what breaks it on purpose."""
    lines = ["| id | what holds | looked at | broken by |", "|---|---|---|---|"]
    for row in TABLE.values():
        places: list[str] = []
        names: list[str] = []
        if row.check is not None:
            places.append(f"memory at {', '.join(row.moments)}")
            names += [f"`{make.__name__}`" for make in on_images.BREAKS[row.id]]
        if row.id in on_images.BETWEEN_MOMENTS:
            places.append(f"memory, {FROM_TWO_MOMENTS[row.id]}")
            names.append(f"`{on_images.BETWEEN_MOMENTS[row.id]}`")
        if row.id in OBSERVED:
            places.append("the run")
            names += [f"*{way.__name__}*" for _, way in BREAKS[row.id]]
        lines.append(f"| {row.id} | {row.title} | {'; '.join(places)} | {', '.join(names)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(BEGIN + markdown() + END, end="")
