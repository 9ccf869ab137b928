"""LUO's rows on the project's kernels: silent on good runs, and each broken on purpose.

One update of a program's sessions is stopped before the reboot and at the first instruction of the new
kernel; each way to break a row goes on from there, with memory or code of the guest changed behind its back,
or with the checker told of a call that never was (where a kernel would have to be broken in many places).
`python -m tests.run.test_own_luo` prints the table of docs/invariants.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from emu.debug.luo_rules import File, Session
from emu.debug.options import Options
from emu.debug.own_luo import OBSERVED, LuoChecker
from emu.debug.own_structures import Structures
from emu.debug.update import Update
from emu.debug.view import PG_PINNED
from kernels.build import project_root
from tests.run.stages import LIMIT, MEMORY, Outcome, Stage
from tests.userspace.binaries import binary

SPEC = "S:one F:0x1:8K:all F:0x2:4K:all F:0x3:4K:all S:two F:0x4:4K:all"
XOR_EAX_RET = "31c0c3"
MOV_EAX_MINUS_5_RET = "b8fbffffffc3"
WITHOUT_FLB = {"INV-18", "INV-44"}


def stage(*events: str, **changes: Any) -> Stage:
    """An update with programs, run to the last of these events."""
    options: dict[str, Any] = {
        "old": "old", "new": "new", "memory": MEMORY, "cmdline": "kho_scratch=48M,0,0",
        "before": [f"lu s1 {SPEC}"], "after": [f"lu s2 {SPEC}"], "files": [(binary("lu"), "/bin/lu")],
        "max_instructions": LIMIT,
    }  # fmt: skip
    found = Stage(Update(Options(**(options | changes))))
    for event in events:
        found.run_to(event)
    return found


@pytest.fixture(scope="module")
def before_jump() -> Iterator[Stage]:
    """Two sessions are there, nothing is serialized yet."""
    found = stage("kexec:reboot")
    yield found
    found.update.machine.close()


@pytest.fixture(scope="module")
def after_jump() -> Iterator[Stage]:
    """The new kernel begins to run."""
    found = stage("kexec:jump", "kernel:start")
    yield found
    found.update.machine.close()


# --- looking and tampering ----------------------------------------------------------------------------


def luo(s: Stage) -> Structures:
    return Structures(s.view)


def session(s: Stage, which: str, number: int = 0) -> Session:
    return luo(s).sessions(which)[number]


def file(s: Stage, which: str, number: int = 0) -> File:
    return session(s, which).files[number]


def checker(s: Stage) -> LuoChecker:
    assert s.update.own is not None
    return s.update.own._luo


def tell(s: Stage, name: str, *arguments: int, **registers: int) -> None:
    """The checker is told of a call that never was."""
    checker(s).called(name, s.machine.registers() | registers, arguments)


def rename(s: Stage, at: int, text: bytes) -> None:
    s.write(at + s.view.struct("luo_session").offset("name"), text + b"\0")


def set_local(s: Stage, source: str, name: str, value: int, size: int = 8) -> None:
    s.write(luo(s).local(source, name), value.to_bytes(size, "little"))


def record(s: Stage) -> int:
    """Virtual address of the record of the first file."""
    phys = file(s, "outgoing").data
    directly = s.view.variable("kho_scratch")  # in the direct map
    return phys + directly - s.view.phys(directly)


def inode(s: Stage) -> int:
    found = luo(s)
    return found.inode(file(s, "outgoing").file)


def first_folio(s: Stage) -> int:
    """struct page of the first folio of the first file."""
    array = s.view.member(record(s), "memfd_luo_ser", "folios.first")
    chunk = s.machine.memory.read(array, 16).view("<u8")
    pfn = int(s.machine.memory.read(int(chunk[1]), 8).view("<u8")[0]) & (1 << 52) - 1
    return s.page(pfn << 12)


# --- the kernel that hands over -------------------------------------------------------------------------


def session_name_twice(s: Stage) -> None:
    rename(s, session(s, "outgoing", 1).address, b"one")


def token_twice(s: Stage) -> None:
    s.set_member(file(s, "outgoing", 1).address, "luo_file", "token", 1)


def file_is_preserved_twice(s: Stage) -> None:
    s.set_member(file(s, "outgoing", 1).address, "luo_file", "file", file(s, "outgoing").file)


def file_grows(s: Stage) -> None:
    s.set_member(inode(s), "inode", "size", 0x3000)


def record_has_another_size(s: Stage) -> None:
    s.set_member(record(s), "memfd_luo_ser", "size", 0x1800)


def pin_is_lost(s: Stage) -> None:
    page = first_folio(s)
    s.set_member(page, "page", "flags", s.view.member(page, "page", "flags") & ~PG_PINNED)


def folio_leaves_the_file(s: Stage) -> None:
    s.set_member(first_folio(s), "page", "mapping", 0)


def calls_are_let_in_again(s: Stage) -> None:
    s.at("machine_kexec", lambda s: set_local(s, "luo_serialize.c", "writing", 0, 1))


def file_is_preserved_after_serialization(s: Stage) -> None:
    s.at("machine_kexec", lambda s: tell(s, "luo_preserve_file", rdi=session(s, "outgoing").file_set))


def freeze_during_shutdown(s: Stage) -> None:
    s.at("luo_session_serialize", lambda s: tell(s, "kexec:shutdown"))


def sessions_without_serialization(s: Stage) -> None:
    found, layout = luo(s), s.view.struct("luo_sessions")
    head = s.view.member(found.header("outgoing") + layout.offset("blocks"), "kho_block_set", "head")
    s.write(
        s.view.number(found.header("outgoing") + layout.offset("sessions_pa")), head.to_bytes(8, "little")
    )
    s.code("luo_session_serialize", XOR_EAX_RET)


def serialization_fails(s: Stage, then: Callable[[Stage], None] | None = None) -> None:
    """The first session is frozen, then the second one's file refuses; ``then`` comes when that is undone."""

    def second(s: Stage) -> None:
        s.code("memfd_freeze", MOV_EAX_MINUS_5_RET)
        if then is not None:
            s.at("luo_file_unfreeze", then)

    s.at("luo_file_freeze", second, count=2)


def sessions_are_still_handed_over(s: Stage) -> None:
    def act(s: Stage) -> None:
        at = luo(s).header("outgoing") + s.view.struct("luo_sessions").offset("sessions_pa")
        s.write(s.view.number(at), (0x1000).to_bytes(8, "little"))

    serialization_fails(s, act)


def records_remain(s: Stage) -> None:
    serialization_fails(s, lambda s: s.code("kho_block_set_clear", "c3"))


def files_are_unfrozen_twice(s: Stage) -> None:
    serialization_fails(s, lambda s: tell(s, "luo_file_unfreeze"))


def session_stays_locked(s: Stage) -> None:
    def act(s: Stage) -> None:
        thread = s.view.member(s.machine.registers()["gs.base"], "percpu", "current_thread")
        lock = session(s, "outgoing", 1).address + s.view.struct("luo_session").offset("lock")
        s.set_member(lock, "mutex", "owner", thread)

    serialization_fails(s, act)


# --- the kernel that receives ---------------------------------------------------------------------------


def when_built(s: Stage, action: Callable[[Stage], None]) -> None:
    """The sessions have been built, and nobody has seen them yet."""
    s.at("luo:session_deserialize", lambda s: s.at("fd_install", action))


def session_has_another_name(s: Stage) -> None:
    when_built(s, lambda s: rename(s, session(s, "incoming", 1).address, b"twa"))


def file_has_another_token(s: Stage) -> None:
    when_built(s, lambda s: s.set_member(file(s, "incoming", 1).address, "luo_file", "token", 77))


def file_is_retrieved_again(s: Stage) -> None:
    s.at("memfd_retrieve", lambda s: tell(s, "memfd_retrieve"))


def file_is_retrieved_that_was_not_serialized(s: Stage) -> None:
    s.at(
        "luo:session_retrieve",
        lambda s: s.set_member(file(s, "incoming").address, "luo_file", "data", 0x5000),
    )


def another_session_is_given(s: Stage) -> None:
    def found(s: Stage) -> None:
        s.at("anon_inode_getfile", lambda s: rename(s, s.machine.registers()["rdx"], b"oxe"))

    s.at("luo:session_retrieve", found)


def session_is_given_twice(s: Stage) -> None:
    def asked(s: Stage) -> None:
        s.at("fd_install", lambda s: tell(s, "fd_install"))

    s.at("luo:session_retrieve", asked)


def file_is_finished_again(s: Stage) -> None:
    s.at("memfd_finish", lambda s: tell(s, "memfd_finish"))


def files_are_finished_out_of_turn(s: Stage) -> None:
    def swap(s: Stage) -> None:
        one, two = file(s, "incoming", 0), file(s, "incoming", 1)
        s.set_member(one.address, "luo_file", "data", two.data)
        s.set_member(two.address, "luo_file", "data", one.data)

    s.at("luo_file_finish", swap)


def files_are_left_unfinished(s: Stage) -> None:
    def drop(s: Stage) -> None:
        for number in range(2):
            s.set_member(file(s, "incoming", number).address, "luo_file", "handler", 0)

    s.at("memfd_finish", drop)


def device_is_open_twice(s: Stage) -> None:
    def again(s: Stage) -> None:
        tell(s, "luo_open", rsi=luo(s).header("incoming"))
        tell(s, "luo:session_deserialize")

    s.at("luo:session_retrieve", again)


def two_files_of_the_device_are_used(s: Stage) -> None:
    s.at("luo:session_retrieve", lambda s: tell(s, "luo_ioctl", rdi=luo(s).header("incoming")))


Case = tuple[str, Callable[[Stage], None], set[str]]
BEFORE: list[Case] = [
    # id, what is done before the reboot, what else is broken by it
    ("INV-17", session_name_twice, {"INV-19"}),
    ("INV-17", token_twice, {"INV-20"}),
    ("INV-17", file_is_preserved_twice, set()),
    ("INV-22", sessions_are_still_handed_over, set()),
    ("INV-22", records_remain, set()),
    ("INV-22", files_are_unfrozen_twice, set()),
    ("INV-22", session_stays_locked, set()),
    ("INV-27", file_grows, set()),
    ("INV-27", record_has_another_size, set()),
    ("INV-27", pin_is_lost, set()),
    ("INV-27", folio_leaves_the_file, set()),
    ("INV-47", calls_are_let_in_again, set()),
    ("INV-47", file_is_preserved_after_serialization, set()),
    ("INV-48", freeze_during_shutdown, set()),
    ("INV-50", sessions_without_serialization, {"INV-12", "INV-19"}),
]
AFTER: list[Case] = [
    ("INV-40", session_has_another_name, set()),
    ("INV-40", file_has_another_token, set()),
    ("INV-41", file_is_retrieved_again, set()),
    ("INV-41", file_is_retrieved_that_was_not_serialized, {"INV-43"}),
    ("INV-42", another_session_is_given, set()),
    ("INV-42", session_is_given_twice, set()),
    ("INV-43", file_is_finished_again, set()),
    ("INV-43", files_are_finished_out_of_turn, set()),
    ("INV-43", files_are_left_unfinished, set()),
    ("INV-46", device_is_open_twice, set()),
    ("INV-46", two_files_of_the_device_are_used, set()),
]


def check_broken(outcome: Outcome, id: str, follows: set[str]) -> None:
    assert not outcome.ok
    assert {id} <= outcome.ids <= {id} | follows, outcome.violations
    assert all(phys is not None for broken, _, _, phys in outcome.violations if broken == id)


@pytest.mark.parametrize("case", BEFORE, ids=[way.__name__ for _, way, _ in BEFORE])
def test_broken_before_the_jump(before_jump: Stage, case: Case) -> None:
    id, way, follows = case
    check_broken(before_jump.go_on(way), id, follows)


@pytest.mark.parametrize("case", AFTER, ids=[way.__name__ for _, way, _ in AFTER])
def test_broken_after_the_jump(after_jump: Stage, case: Case) -> None:
    id, way, follows = case
    check_broken(after_jump.go_on(way), id, follows)


# --- good runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before_jump", "after_jump"])
def test_untouched(where: str, request: pytest.FixtureRequest) -> None:
    outcome = request.getfixturevalue(where).go_on()
    assert (outcome.ok, outcome.reasons, outcome.violations) == (True, [], [])
    assert set(OBSERVED) - WITHOUT_FLB - {"INV-22"} <= set(outcome.checked)
    assert outcome.not_checked["INV-22"] == "no serialization failed"
    assert {outcome.not_checked[id] for id in WITHOUT_FLB} == {"the kernel has no FLB"}


def test_a_serialization_that_fails_leaves_nothing(before_jump: Stage) -> None:
    def act(s: Stage) -> None:
        serialization_fails(s)
        result = s.update.run()
        assert s.update.own is not None
        report = s.update.own.report(0)
        assert result.violations == [] and "INV-22" in report.checked, report

    before_jump.go_on(act)


def test_watching_changes_nothing() -> None:
    hashes = set[str]()
    for raw in (False, True):
        s = stage(raw=raw)
        hashes.add(s.update.run().state_hash)
        s.update.machine.close()
    assert len(hashes) == 1


def test_a_structure_that_is_another_one_is_not_believed(before_jump: Stage) -> None:
    """The number of sessions is wrong: nothing is claimed of the list."""

    def act(s: Stage) -> None:
        at = luo(s).header("outgoing") + s.view.struct("luo_sessions").offset("count")

        def set_count(s: Stage, change: int) -> None:
            s.write(at, (s.view.number(at) + change).to_bytes(8, "little"))

        s.at("luo_session_serialize", lambda s: set_count(s, 1))
        s.at("luo_file_freeze", lambda s: set_count(s, -1))

    outcome = before_jump.go_on(act)
    assert outcome.violations == []
    assert outcome.not_checked["INV-17"] == "there are 2 outgoing sessions, 3 are counted"


# --- FLBs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flb() -> Iterator[Stage]:
    """The device is opened for the first time; nothing is preserved."""
    found = stage("luo_open")
    yield found
    found.update.machine.close()


def register_flb(s: Stage) -> int:
    """An FLB of the handler of memfds, put where no kernel with programs has anything. Its operations
    succeed."""
    view = s.view
    at, ops, link = (view.symbol("load_next.path") + offset for offset in (0, 0x800, 0x900))
    code = view.symbol("workload_run")
    for offset in range(0, 0xA00, 8):
        s.write(at + offset, bytes(8))

    def word(address: int, value: int) -> None:
        s.write(address, value.to_bytes(8, "little"))

    def insert(entry: int, head: int) -> None:
        assert view.number(head) == head, "the list is empty"
        for one, other in ((entry, head), (head, entry)):
            word(one, other)
            word(one + 8, other)

    layout = view.struct("liveupdate_flb")
    for number, name in enumerate(("preserve", "unpreserve", "retrieve", "finish")):
        s.write(code + 16 * number, bytes.fromhex(XOR_EAX_RET))
        word(ops + view.struct("liveupdate_flb_ops").offset(name), code + 16 * number)
    word(at + layout.offset("ops"), ops)
    s.write(at + layout.offset("compatible"), b"test-flb\0")
    word(at + layout.offset("users"), 1)
    layouts = s.kernel.layouts
    for state in ("outgoing", "incoming"):
        waiters = at + layouts.offset("liveupdate_flb", f"{state}.lock.wait.waiters")
        word(waiters, waiters)
        word(waiters + 8, waiters)
    handler = view.symbol("memfd_luo_handler")
    s.set_member(link, "link", "flb", at)
    insert(link, handler + view.struct("liveupdate_file_handler").offset("flbs"))
    insert(at + layout.offset("list"), luo(s).local("luo_flb.c", "flbs"))
    tell(s, "liveupdate_register_flb", rdi=handler, rsi=at)
    return at


def with_flb(s: Stage, old: Callable[[Stage, int], None], new: Callable[[Stage, int], None]) -> None:
    """Both kernels have the FLB."""
    at = register_flb(s)
    old(s, at)

    def opened(s: Stage) -> None:
        new(s, register_flb(s))

    s.at("kexec:jump", lambda s: s.at("luo_open", opened))


def nothing(s: Stage, at: int) -> None:
    pass


def flb_counts_too_many(s: Stage) -> None:
    def act(s: Stage, at: int) -> None:
        files = at + s.kernel.layouts.offset("liveupdate_flb", "outgoing.files")
        s.at("luo_flb_serialize", lambda s: s.write(files, (9).to_bytes(8, "little")))

    with_flb(s, act, nothing)


def flb_is_finished_without_retrieve(s: Stage) -> None:
    def act(s: Stage, at: int) -> None:
        status = at + s.kernel.layouts.offset("liveupdate_flb", "incoming.retrieve_status")
        s.at("luo_file_finish", lambda s: s.write(status, (1).to_bytes(4, "little")))

    with_flb(s, nothing, act)


def flb_is_never_finished(s: Stage) -> None:
    def act(s: Stage, at: int) -> None:
        s.at("luo_file_finish", lambda s: s.code("luo_flb_file_finish", "c3"))

    with_flb(s, nothing, act)


FLB: list[Case] = [
    ("INV-18", flb_counts_too_many, {"INV-44"}),
    ("INV-44", flb_is_finished_without_retrieve, set()),
    ("INV-44", flb_is_never_finished, set()),
]


def test_flbs(flb: Stage) -> None:
    outcome = flb.go_on(lambda s: with_flb(s, nothing, nothing))
    assert outcome.violations == [] and outcome.ok, outcome.reasons
    assert set(outcome.checked) >= WITHOUT_FLB


@pytest.mark.parametrize("case", FLB, ids=[way.__name__ for _, way, _ in FLB])
def test_broken_flbs(flb: Stage, case: Case) -> None:
    id, way, follows = case
    check_broken(flb.go_on(way), id, follows)


# --- the table ------------------------------------------------------------------------------------------


def table() -> str:
    """Rows and the ways above to break them, as docs/invariants.md has it."""
    ways = {id: [way.__name__ for row, way, _ in (*BEFORE, *AFTER, *FLB) if row == id] for id in OBSERVED}
    lines = [f"| {id} | {', '.join(f'*{name}*' for name in names)} |" for id, names in ways.items()]
    return "\n".join(["| id | broken by |", "|---|---|", *lines])


def test_every_row_is_broken_here() -> None:
    assert {id for id, _, _ in (*BEFORE, *AFTER, *FLB)} == set(OBSERVED)


def test_the_table_in_the_docs() -> None:
    text = (project_root() / "docs" / "invariants.md").read_text()
    assert table() in text, "python -m tests.run.test_own_luo prints it"


if __name__ == "__main__":
    print(table())
