"""`luemu run` on the project's own kernels: the report, phases, chains, options."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kernels
from emu.boot import Boot
from emu.cli import main
from emu.debug.chain import Chain
from emu.debug.phases import IDS
from emu.debug.update import Update
from emu.debug.userspace import initramfs
from emu.machine import Machine
from tests.run.stages import LIMIT, MEMORY, options

Run = Callable[..., dict[str, Any]]
SMALL_RUN = ("run", "--workload", "kho", "--memory", "128M", "--preserve", "256K")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`luemu run --json`, which must end with this status."""

    def called(*words: str, status: int = 0) -> dict[str, Any]:
        assert main([*SMALL_RUN, "--json", *words]) == status
        out, err = capsys.readouterr()
        assert err == ""
        document: dict[str, Any] = json.loads(out)
        return document

    return called


# --- one update ---------------------------------------------------------------------------------------

PHASES = ["P1", "P2", "P6", "P7", "P8", "P10", "P11", "P12", "P13", "P14", "P15", "P17"]
FIRST_OF_NEW = "P12"


def check_partition(u: dict[str, Any], start: int | None = 0) -> int:
    """Every tick of an update is in exactly one record; returns where the next one begins."""
    phases = u["phases"]
    assert start is None or phases[0]["start"] == start
    for p in phases:
        assert IDS[p["name"]] == p["id"] and p["ticks"] > 0 and 0 <= p["instructions"] <= p["ticks"]
    for one, following in itertools.pairwise(phases):
        assert one["start"] + one["ticks"] == following["start"], (one, following)
        assert (one["id"], one["generation"]) != (following["id"], following["generation"])
    last = phases[-1]
    return int(last["start"] + last["ticks"])


def check_phases(u: dict[str, Any]) -> None:
    """The phases that every update has, in their order, each in its kernel."""
    ids = [p["id"] for p in u["phases"]]
    assert [id for id in dict.fromkeys(ids) if id in PHASES] == PHASES
    entered = ids.index(FIRST_OF_NEW)
    for number, p in enumerate(u["phases"]):
        assert (p["kernel"], p["generation"]) == (("new", 1) if number >= entered else ("old", 0)), p
    assert ids[0] == "P1" and ids[-1] in ("userspace", "P22")


def test_the_default(run: Run) -> None:
    d = run()
    assert (d["ok"], d["reasons"], d["violations"], d["panic"], d["programs"]) == (True, [], [], None, [])
    assert (d["old"]["release"], d["new"]["release"]) == ("7.2.1-luemu", "7.2.2-luemu")
    assert d["memory_bytes"] == MEMORY and d["end"]["kind"] == "power-off"
    (u,) = d["updates"]
    assert all(d[key] == u[key] for key in u)
    check_phases(u)
    assert check_partition(u) == d["end"]["ticks"]
    assert u["moments"] == ["J", "K", "F"] and u["sessions"] == []
    assert set(u["checked"]) & set(u["not_checked"]) == set()
    assert len(u["checked"]) + len(u["not_checked"]) == 50, "every row is checked, or has a reason"


def test_the_blackout_without_user_space(run: Run) -> None:
    """From the reboot request to the init thread of the new kernel."""
    d = run()
    by_id = {p["id"]: p for p in d["phases"] if p["id"] != "userspace"}
    last = d["phases"][-1]
    assert d["blackout_ticks"] == last["start"] - by_id["P8"]["start"]
    between = [p for p in d["phases"] if by_id["P8"]["start"] <= p["start"] < last["start"]]
    assert d["blackout_instructions"] == sum(p["instructions"] for p in between)
    assert 0 < d["digest_instructions"] < by_id["P11"]["instructions"]


def test_what_was_preserved(run: Run) -> None:
    d = run("--cmdline", "reserve_mem=1M:4K:trace", "--scratch", "48M,0,0")
    kept = {item["name"]: item for item in d["kept"]}
    assert set(kept) == {"kho_test", "luemu_test vmalloc@0", "luemu_test vmalloc@1", "reserve_mem trace"}
    assert kept["kho_test"]["bytes"] == 256 << 10
    assert sum(n << int(order) for order, n in kept["kho_test"]["orders"].items()) == 64
    assert kept["reserve_mem trace"]["bytes"] == 1 << 20 and kept["reserve_mem trace"]["phys"] % 4096 == 0
    payload = sum(item["bytes"] for item in d["kept"])
    p = d["preserved"]
    assert p["bytes"] == p["pages"] << 12 == payload + p["metadata_bytes"] and p["metadata_bytes"] > 0
    assert [area["size"] >> 20 for area in d["scratch"]] == [48, 0, 0]


@pytest.mark.parametrize("order", [0, 4, 10])
def test_the_order_of_folios(run: Run, order: int) -> None:
    d = run("--preserve", "8M", "--preserve-order", str(order))
    (kept,) = (item for item in d["kept"] if item["name"] == "kho_test")
    assert kept["orders"] == {str(order): (8 << 20 >> 12) >> order}


def test_watching_changes_nothing(run: Run) -> None:
    """The same command lines and initramfs, and nobody who watches."""
    d = run()
    chain = Chain.open("old", ["new"], 1, cmdline=f"test_kho.max_mem={256 << 10}")
    u = Update(options(cmdline=f"test_kho.max_mem={256 << 10}"))
    archive = initramfs(u.options, u.chain)
    u.machine.close()
    with Machine(MEMORY) as m:
        m.boot(Boot(chain.kernel(0).image, f"{chain.command_line(0)} luemu.generation=0", archive))
        stop = m.run(max_instructions=LIMIT)
        assert (m.state_hash(), stop.ticks) == (d["state_hash"], d["end"]["ticks"])


def test_raw_is_not_verified(run: Run) -> None:
    d = run("--raw", status=1)
    assert d["reasons"] == ["nothing was verified: --raw observes nothing"] and d["updates"] == []
    assert d["state_hash"] == run()["state_hash"]


def test_no_update(run: Run) -> None:
    d = run("--updates", "0")
    assert (d["ok"], d["updates"]) == (True, []) and {p["generation"] for p in d["phases"]} == {0}


# --- chains -------------------------------------------------------------------------------------------


def releases(d: dict[str, Any]) -> list[str]:
    names = {"7.2.1-luemu": "old", "7.2.2-luemu": "new"}
    return [names[d["updates"][0]["old"]["release"]], *(names[u["new"]["release"]] for u in d["updates"])]


def check_chain(d: dict[str, Any], expected: list[str]) -> None:
    assert (d["ok"], d["reasons"]) == (True, [])
    assert releases(d) == expected
    start = 0
    for number, u in enumerate(d["updates"]):
        start = check_partition(u, start)
        assert {p["generation"] for p in u["phases"]} == {number, number + 1}
        assert all(p["kernel"] == ("old" if p["generation"] <= number else "new") for p in u["phases"])
        assert u["moments"] == ["J", "K", "F"]
        assert number == 0 or "INV-4" in u["checked"]
    assert start == d["end"]["ticks"]


def test_old_and_new_by_turns(run: Run) -> None:
    check_chain(run("--updates", "3"), ["old", "new", "old", "new"])


def test_ten_updates_in_any_order(run: Run) -> None:
    """Every pair of releases, each update verified by the host at J, K and F, no page lost (INV-38)."""
    order = ["old", "new", "new", "old", "old", "new", "old", "old", "new", "new", "old"]
    assert len(set(itertools.pairwise(order))) == 4
    d = run("--old", order[0], *(word for name in order[1:] for word in ("--new", name)))
    check_chain(d, order)
    assert all({"INV-26", "INV-30", "INV-38"} <= set(u["checked"]) for u in d["updates"])


def test_kernels_by_names(run: Run) -> None:
    words = ["--old", "new", "--new", "new", "--new", "old", "--new", "old"]
    check_chain(run(*words), ["new", "new", "old", "old"])


def test_kernels_by_paths(run: Run) -> None:
    """An ELF file boots by PVH, and is made a bzImage to be started by kexec."""
    old = str(kernels.binary("old.elf"))
    check_chain(
        run("--old", old, "--new", str(kernels.binary("new.bzImage")), "--new", old), ["old", "new", "old"]
    )


def test_a_chain_has_a_line_an_update(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL_RUN, "--updates", "3"]) == 0
    out = capsys.readouterr().out
    assert "cold-boot" not in out and out.count("-luemu") == 6 and out.endswith("ok\n")
    assert len(out.splitlines()) == 6


# --- the screen ---------------------------------------------------------------------------------------


def test_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL_RUN]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) < 32 and max(map(len, lines)) < 140
    assert lines[0].split() == ["phase", "kernel", "times", "instructions", "microseconds"]
    assert lines[-1] == "ok" and lines[-2].startswith("state ")
    for text in ("update 1: 7.2.1-luemu -> 7.2.2-luemu", "  blackout ", "  preserved ", "  scratch: low "):
        assert any(line.startswith(text) for line in lines), text


def test_verbose_shows_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL_RUN, "-v"]) == 0
    out = capsys.readouterr().out
    assert "KHO: found kexec handover data." in out and "luemu: verdict ok" in out


def test_saved_and_dumped(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is kept at J, K and F can be inspected and checked."""
    words = list[str]()
    for moment in "JKF":
        words += [
            "--save",
            f"{moment}={tmp_path / moment}.saved",
            "--dump",
            f"{moment}={tmp_path / moment}.raw.zst",
        ]
    run(*words)
    for moment in "JK":
        for name in (f"{moment}.saved", f"{moment}.raw.zst"):
            assert main(["check", "--json", str(tmp_path / name)]) == 0, name
            document = json.loads(capsys.readouterr().out)
            assert document["moment"] == moment and len(document["checked"]) >= 11
            assert main(["inspect", "--json", str(tmp_path / name)]) == 0
            document = json.loads(capsys.readouterr().out)
            assert document["unexplained"] == [] and document["kho_test"]["csum_ok"] is True
    for name in ("F.saved", "F.raw.zst"):
        assert main(["check", "--json", str(tmp_path / name)]) == 0, name
        assert "INV-35" in json.loads(capsys.readouterr().out)["checked"]


# --- bad usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preserve", "lots"], '"lots" is no number'),
        (["--preserve-order", "11"], "the largest folio has 2^10 pages"),
        (["--scratch", "4M"], "is not L,G,N: three sizes"),
        (["--scratch", "0,0,0"], "scratch cannot be empty"),
        (["--updates", "3", "--new", "old", "--new", "new"], "3 updates, and 2 times --new"),
        (["--old", "nosuch"], "nosuch: cannot be read"),
        (["--symbols", str(kernels.BIN_DIR / "new.elf"), "--old", str(kernels.BIN_DIR / "old.bzImage")],
         "does not belong to the kernel"),
        (["--file", "/etc/hosts:/boot/chain"], "is where luemu's own init"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err, err
    assert main(["run", *words, "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]["message"] + err


def test_too_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--memory", "4M"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
