"""`luemu run --workload`: what the project's workloads come to on our kernels, and how they fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emu.cli import main
from emu.debug.chain import Chain
from emu.debug.options import Options
from emu.debug.update import Update
from emu.debug.userspace import initramfs
from emu.debug.workloads import DEFAULT, WORKLOADS, CacheReport, Ledger, workload
from emu.errors import ConfigError
from emu.machine import Machine
from kho.handover import Handover
from luo.memfd import Memfd
from luo.state import Luo
from tests.oracles import require

MIB = 1 << 20
SMALL = ("--memory", "256M", "--preserve", "4M")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`luemu run --json`, which must end with this status."""

    def called(*words: str, status: int = 0) -> dict[str, Any]:
        assert main(["run", "--json", *words]) == status
        out, err = capsys.readouterr()
        assert err == ""
        document: dict[str, Any] = json.loads(out)
        return document

    return called


def outputs(d: dict[str, Any]) -> str:
    return "".join(p["output"] for p in d["programs"])


# --- the cache ------------------------------------------------------------------------------------------


def check_cache(d: dict[str, Any], updates: int = 1) -> None:
    assert (d["ok"], d["reasons"], d["violations"]) == (True, [], [])
    assert len(d["updates"]) == updates
    for u in d["updates"]:
        c = u["cache"]
        assert (c["lost"], c["corrupted"], c["last_write_survived"]) == (0, 0, True)
        assert c["keys"] == 2048 and 3 * MIB < c["bytes"] < 4 * MIB
        assert [(s["name"], len(s["files"])) for s in u["sessions"]] == [("cache", 2), ("cache-client", 1)]
        store = next(f for f in u["sessions"][0]["files"] if f["token"] == 1)
        assert store["size"] == 4 * MIB
    written = [u["cache"]["acknowledged"] for u in d["updates"]]
    assert written[0] > 2048 and written == sorted(set(written)), "each kernel is written to, until it stops"
    assert d["cache"] == d["updates"][-1]["cache"]


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("new", "old"), ("old", "old"), ("new", "new")])
def test_nothing_is_lost(run: Run, old: str, new: str) -> None:
    d = run("--workload", "cache", "--old", old, "--new", new, *SMALL)
    check_cache(d)
    assert [(p["when"], p["argv"][:2], p["status"]) for p in d["programs"]] == [
        ("before", ["cache", "start"], 0), ("after", ["cache", "check"], 0),
    ]  # fmt: skip


def test_nothing_is_lost_in_a_chain(run: Run) -> None:
    d = run("--workload", "chain", "--updates", "3", *SMALL)
    check_cache(d, 3)
    releases = [u["new"]["release"] for u in d["updates"]]
    assert releases[0] == releases[2] != releases[1] == d["updates"][0]["old"]["release"]


def test_it_is_the_default(run: Run) -> None:
    d = run("--memory", "256M")
    assert DEFAULT == "cache" and d["cache"]["keys"] == 2048
    assert d["updates"][0]["sessions"][0]["files"][0]["size"] == 16 * MIB


def test_without_an_update(run: Run) -> None:
    d = run("--updates", "0", *SMALL)
    assert (d["ok"], d["updates"], d["cache"]) == (True, [], None)
    assert [p["argv"][:2] for p in d["programs"]] == [["cache", "start"]]


def test_it_is_written_to_until_the_kernel_stops(run: Run) -> None:
    """The client goes on while the next kernel is loaded: more is acknowledged than the command said."""
    d = run(*SMALL)
    said = int(outputs(d).split(" writes acknowledged")[0].rsplit(" ", 1)[1])
    assert d["cache"]["acknowledged"] > said
    assert d["cache"]["issued"] - d["cache"]["acknowledged"] in (0, 1)


def test_one_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *SMALL]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("cache: ")]
    assert line.startswith("cache: 2,048 keys, 3.") and line.endswith("acknowledged writes the last survived")
    assert "0 lost, 0 corrupted" in line


@pytest.mark.campaign
def test_large_values(run: Run) -> None:
    """Fewer and larger ones in a large store; the machine is as large as that needs."""
    d = run("--preserve", "320M", "--old", "new", "--new", "old")
    assert (d["ok"], d["reasons"]) == (True, [])
    assert d["memory_bytes"] > 512 * MIB and d["cache"]["bytes"] > 250 * MIB


# --- when it goes wrong ---------------------------------------------------------------------------------

BUSYBOX = ("--file", "{busybox}:/bin/sh", "--file", "{busybox}:/bin/busybox")


def with_shell(*words: str) -> list[str]:
    busybox = str(require("busybox"))
    return [word.format(busybox=busybox) for word in BUSYBOX] + list(words)


PID = "$(cache status | busybox sed -n 's/STAT pid \\([0-9]*\\).*/\\1/p')"


def test_the_service_dies_before_the_update(run: Run) -> None:
    """What it had is in the sessions: the next one finds all of it."""
    d = run("--workload", "cache", *SMALL, *with_shell("--before", f'sh -c "kill -9 {PID}"'))
    assert (d["ok"], d["reasons"]) == (True, [])
    assert (d["cache"]["lost"], d["cache"]["corrupted"], d["cache"]["last_write_survived"]) == (0, 0, True)


def test_the_agent_dies_before_the_update(run: Run) -> None:
    """With it go the sessions, and everything is lost: that is not ok."""
    d = run("--workload", "cache", *SMALL, *with_shell("--before", "busybox killall -9 cache"), status=1)
    assert d["cache"] is None and d["sessions"] == []
    assert "cache: retrieve a session: No such file or directory" in outputs(d)
    assert any("cache check (after, generation 1) exited with status 1" in r for r in d["reasons"])


def test_no_agent_can_open_the_device(run: Run) -> None:
    d = run(*SMALL, "--cmdline", "liveupdate=off", status=1)
    assert "cache: /dev/liveupdate: No such file or directory" in outputs(d)


def test_too_little_memory(run: Run) -> None:
    d = run("--preserve", "128M", "--memory", "128M", status=1)
    assert d["ok"] is False and d["reasons"]


def test_a_store_that_nobody_checks(run: Run) -> None:
    d = run("--file", "kernels/bin/cache:/bin/cache", "--before", "cache start 4M", status=1)
    assert d["reasons"] == ["update 1: nobody compared the cache with what was written before"]


def update(**changes: Any) -> Update:
    w = workload("cache", 4 * MIB)
    o = Options("old", "new", before=w.before, after=w.after, programs=w.programs, memory=256 * MIB)
    for name, value in changes.items():
        setattr(o, name, value)
    return Update(o)


def before_j(u: Update, action: Callable[[Machine, Luo], None]) -> None:
    """Do something to what is handed over, at the jump, before the host has a look at it."""
    (probe,) = u.chain.kernel(0).probes.at("kexec:jump")

    def hit(m: Machine, address: int) -> None:
        handover = Handover.read(m.memory)
        luo = Luo.read(handover)
        assert luo is not None
        action(m, luo)

    u.machine.probe(probe.address, hit)
    handlers = u.machine._probes[probe.address]
    handlers.insert(0, handlers.pop())


def memfd(luo: Luo, session: str, token: int) -> Memfd:
    (found,) = [f.memfd for s in luo.sessions if s.name == session for f in s.files if f.token == token]
    assert found is not None
    return found


def test_a_byte_that_changes_before_anybody_looks() -> None:
    """Every page that is handed over is the same at J, K and F, and yet the client notices."""
    u = update()

    def change(m: Machine, luo: Luo) -> None:
        phys = int(memfd(luo, "cache", 1).folio_phys[100]) + 2000
        m.memory.write(phys, bytes([int(m.memory.read(phys, 1)[0]) ^ 1]), by="test")

    before_j(u, change)
    with u.machine:
        result = u.run()
    assert result.cache is not None and (result.cache["lost"], result.cache["corrupted"]) == (0, 1)
    assert not result.ok and result.violations == []
    assert any("0 lost, 1 corrupted" in reason for reason in result.reasons), result.reasons


def test_a_bucket_that_is_emptied_before_anybody_looks() -> None:
    u = update()

    def change(m: Machine, luo: Luo) -> None:
        at = int(memfd(luo, "cache", 2).folio_phys[1])
        words = m.memory.read(at, 4096).view("<u8")
        used = [i for i, word in enumerate(words.tolist()) if word]
        m.memory.write(at + 8 * used[0], bytes(8), by="test")

    before_j(u, change)
    with u.machine:
        result = u.run()
    assert result.cache is not None and result.cache["lost"] >= 1 and result.cache["corrupted"] == 0
    assert not result.ok


def test_an_index_that_is_damaged_before_anybody_looks() -> None:
    """The service does not start on it, and says why."""
    u = update()
    before_j(u, lambda m, luo: m.memory.write(int(memfd(luo, "cache", 2).folio_phys[0]), b"x", by="test"))
    with u.machine:
        result = u.run()
    assert not result.ok and result.cache is None
    assert "cache: this is no index of a cache" in "".join(p["output"] for p in result.programs)


def test_a_ledger_that_is_turned_back_after_j() -> None:
    """Everything agrees with everything, but not with what the host saw at J."""
    u = update()
    (probe,) = u.chain.kernel(1).probes.at("kernel:start")
    at: list[int] = []
    before_j(u, lambda m, luo: at.append(int(memfd(luo, "cache-client", 3).folio_phys[0])))

    def turn_back(m: Machine, address: int) -> None:
        observers, m.memory.observers = m.memory.observers, []
        for offset in (24, 32):  # issued, acknowledged
            m.memory.write(at[0] + offset, (2048).to_bytes(8, "little"), by="test")
        m.memory.observers = observers

    u.machine.probe(probe.address, turn_back)
    with u.machine:
        result = u.run()
    assert not result.ok
    assert {v["id"] for v in result.violations} == {"INV-26"}
    assert any("remembers 2,048 acknowledged writes" in reason for reason in result.reasons), result.reasons


# --- reports --------------------------------------------------------------------------------------------

LINE = b'@cache {"keys": 3, "bytes": 4, "lost": 0, "corrupted": 0, "last_write_survived": true, '
LINE += b'"issued": 6, "acknowledged": 5, "in_flight": 1}\r\n'
LEDGER = Ledger(keys=3, issued=6, acknowledged=5, written=3)


def test_a_report_is_read() -> None:
    report = CacheReport.parse(b"something else\n" + LINE)
    assert report is not None and report.ok and (report.keys, report.acknowledged) == (3, 5)
    assert LEDGER.contradictions(report) == []
    assert CacheReport.parse(b"nothing\n") is None


@pytest.mark.parametrize("line", [b"@cache nonsense", b"@cache []", b'@cache {"what": 1}', b"@cache "])
def test_a_report_that_cannot_be_read_is_not_ok(line: bytes) -> None:
    report = CacheReport.parse(line)
    assert report is not None and not report.ok and report.problems


@pytest.mark.parametrize(
    "ledger",
    [Ledger(3, 7, 5, 3), Ledger(3, 6, 6, 3), Ledger(9, 6, 5, 9), Ledger(3, 6, 5, 1)],
)
def test_a_report_that_contradicts_the_ledger(ledger: Ledger) -> None:
    report = CacheReport.parse(LINE)
    assert report is not None and len(ledger.contradictions(report)) == 1


def test_no_ledger_is_no_ledger() -> None:
    assert Ledger.parse(b"") is None and Ledger.parse(b"x" * 100) is None
    assert Ledger.parse(b"LULEDGER" + bytes(10)) is None
    cut = b"LULEDGER" + (1).to_bytes(4, "little") + (1000).to_bytes(4, "little") + bytes(40) + b"\1\0\0\0"
    found = Ledger.parse(cut)
    assert found is not None and found.written == 1, "what is not there is not read"


# --- the others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"), [pytest.param("old", "new", marks=pytest.mark.campaign), ("new", "old")]
)
def test_thousands_of_sessions_and_files(run: Run, old: str, new: str) -> None:
    d = run("--workload", "many", "--old", old, "--new", new, "--memory", "256M")
    assert (d["ok"], d["reasons"]) == (True, [])
    assert len(d["sessions"]) == 2001 and sum(len(s["files"]) for s in d["sessions"]) == 4000
    assert "many: 2001 sessions and 4000 files, 0 bad" in outputs(d)


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("new", "old")])
def test_files_with_holes_seals_and_positions(run: Run, old: str, new: str) -> None:
    d = run("--workload", "sparse", "--old", old, "--new", new, "--memory", "256M")
    assert (d["ok"], d["reasons"]) == (True, [])
    (session,) = d["sessions"]
    assert len(session["files"]) == 17 and "17 files, 0 bad" in outputs(d)


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("new", "old")])
def test_every_way_in_which_an_update_fails(run: Run, old: str, new: str) -> None:
    d = run("--workload", "abort", "--old", old, "--new", new, "--memory", "256M")
    assert (d["ok"], d["reasons"], d["violations"]) == (True, [], [])
    lines = outputs(d).splitlines()
    assert len(lines) > 40 and all(line.startswith("ok: ") for line in lines), lines
    assert "INV-22" in d["checked"], "a serialization failed, and everything was as before"


def test_abort_on_a_kernel_without_files_that_refuse(run: Run) -> None:
    """What cannot be tried is said to be skipped."""
    d = run("--file", "kernels/bin/abort:/bin/abort", "--before", "abort start", "--after", "abort check")
    assert d["ok"] is True
    assert [line for line in outputs(d).splitlines() if not line.startswith("ok: ")] == [
        "skipped: a file refuses to be frozen: there is no /dev/luo_test",
        "skipped: a file refuses to be finished: there is no /dev/luo_test",
    ]


def test_the_test_of_kho(run: Run) -> None:
    d = run("--workload", "kho", "--memory", "128M", "--preserve", "256K")
    assert (d["ok"], d["programs"], d["cache"]) == (True, [], None)
    assert any(item["name"] == "kho_test" for item in d["kept"])


def test_help_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--workload", "help"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == list(WORKLOADS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workload", "nosuch"], "workload nosuch: is none of cache, chain, net, many, sparse, abort, kho"),
        (["--workload", "many", "--preserve", "4M"], "hands over what it always does: it has no size"),
        (["--preserve", "1M"], "--preserve: 1 MiB is too small, 4 MiB is the least"),
        (["--preserve", "0"], "too small"),
        (["--rate", "100"], "--rate: only workload net has that"),
        (["--workload", "chain", "--irq"], "--irq: only workload net has that"),
        (["--workload", "net", "--rate", "0"], "--rate: 0 frames a second"),
        (["--workload", "net", "--frame-size", "9217"], "--frame-size: a frame has 60 to 9216 bytes"),
        (["--workload", "net", "--ring", "12"], "--ring: a ring has 8 to 32768 descriptors"),
        (["--fault", "nosuch"], "fault nosuch: is none of iommu-state, iommu-off, iotlb, bus-master"),
        (["--workload", "many", "--fault", "iotlb"], "--fault: only workload net has that"),
        (["--trace-dma"], "--trace-dma: says where: --trace FILE"),
        (["--workload", "cache", "--init", "/bin/true"], "--init: its commands are run by luemu's init"),
        (["--before", "x", "--init", "/bin/true"], "--init: its commands are run by luemu's init"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err, err


def test_a_program_that_is_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kernels.BIN_DIR", tmp_path)
    with pytest.raises(ConfigError, match="is missing: guests are built when luemu is installed"):
        initramfs(Options("old", "new", programs=["cache"]), Chain([], 0))
