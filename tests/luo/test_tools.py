"""`luemu inspect` and `luemu check`: documents, exit statuses, errors, and what a person sees."""

from __future__ import annotations

import argparse
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from emu.debug import check, inspect, output
from emu.debug.output import Branch, UsageError, parse_number
from kho.builder import Built
from tests.luo.images import RECORDED, build, put, set_bit

Run = Callable[..., tuple[int, str, str]]
SECOND = "second-kernel-kho_populate.pruned.raw.zst"
BEFORE = "before-kexec.pruned.raw.zst"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line; returns (status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser(prog="luemu")
        subparsers = parser.add_subparsers(required=True)
        inspect.add_parser(subparsers)
        check.add_parser(subparsers)
        args = parser.parse_args([str(argument) for argument in arguments])
        status = args.func(args)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call


def save(built: Built, path: Path) -> Path:
    """A raw image."""
    path.write_bytes(built.memory.data.tobytes())
    return path


def error_of(text: str) -> dict[str, Any]:
    document = json.loads(text)
    assert document["ok"] is False and document.keys() == {"ok", "error"}
    assert document["error"].keys() == {"kind", "message", "where"}
    error: dict[str, Any] = document["error"]
    return error


@pytest.mark.parametrize("name", [SECOND, BEFORE])
@pytest.mark.parametrize("config", ["c00-nosession", "c01-luo-off", "c1-1x4k", "c10-reserve_mem", "c3-3sess"])
def test_inspect_json_of_recordings(run: Run, config: str, name: str) -> None:
    path = RECORDED / config / name
    status, out, err = run("inspect", "--json", path)
    assert status == 0 and not err
    document = json.loads(out)
    stem = name.removesuffix(".pruned.raw.zst")
    walk = json.loads((RECORDED / config / f"{stem}.walk.json").read_text())
    facts = json.loads((RECORDED / config / f"{stem}.json").read_text())
    assert [[block["phys"], block["order"]] for block in document["preserved"]] == [
        b[:2] for b in walk["preserved"]
    ]
    kho = document["kho"]
    assert kho["compatible"] == "kho-v4" and kho["fdt_phys"] == int(facts["kho_fdt_pa"], 0)
    assert (kho["fdt_size"], kho["radix_root"]) == (walk["fdt_totalsize"], walk["radix_root"])
    assert kho["radix_nodes"] == len(walk["radix_nodes"])
    assert [[area["phys"], area["size"]] for area in kho["scratch"]] == [
        [int(a, 0), int(s, 0)] for a, s in facts["scratch"]
    ]
    assert document["subtrees"] == {n: {"phys": b[0], "size": b[1]} for n, b in walk["blobs"].items()}
    assert document["kexec_metadata"] == {"version": 1, "previous_release": "7.2.13-kho", "kexec_count": 1}
    assert document["violations"] == [] and document["unexplained"] == []
    assert document["moment"] == ("K" if name == SECOND else "J")
    if config == "c10-reserve_mem":
        assert document["reserve_mem"] == [{"name": "golden", "phys": 0x7A27000, "size": 1 << 20}]
    if config == "c01-luo-off":
        assert document["luo"] is None
        return
    luo = document["luo"]
    assert luo["compatible"] == "luo-v5" and luo["liveupdate_num"] == 1 and luo["flbs"] == []
    digests = {}
    for session, expected in zip(luo["sessions"], walk["luo"].get("sessions", []), strict=True):
        assert session["name"] == expected["name"]
        for file, known in zip(session["files"], expected.get("files", []), strict=True):
            shown = {k: file[k] for k in ("token", "compatible", "size", "pos", "seals", "sha256")}
            assert shown == {k: known[k] for k in shown} and file["folios"] == known["nr_folios"]
            digests[f"{session['name']}/{file['token']:#x}"] = file["sha256"]
    assert digests == facts["expected_sha256"]


def test_every_violation_has_the_same_shape(run: Run, tmp_path: Path) -> None:
    built = build()
    set_bit(built, 9 << 20)
    path = save(built, tmp_path / "image")
    status, out, _ = run("inspect", "--json", path)
    assert status == 0, "inspect could decode it"
    (violation,) = json.loads(out)["violations"]
    assert violation == {
        "id": "INV-11", "moment": "K", "phys": 9 << 20,
        "message": "the preserved block of order 0 lies in scratch area 0",
    }  # fmt: skip
    status, out, _ = run("check", "--json", path)
    document = json.loads(out)
    assert status == 1 and document["violations"] == [violation] and document["ok"] is False
    assert document.keys() == {"ok", "moment", "violations", "checked", "not_checked"}
    status, out, _ = run("check", path)
    assert status == 1 and "INV-11 at 0x900000" in out and "nothing preserved lies in scratch" in out


def test_summary_leaves_long_lists_out(run: Run) -> None:
    path = RECORDED / "c3-3sess" / SECOND
    _, full, _ = run("inspect", "--json", path)
    _, short, _ = run("inspect", "--json", "--summary", path)
    assert len(short) < len(full) / 5
    document = json.loads(short)
    assert "preserved" not in document and "sessions" not in document["luo"]
    assert document["preserved_summary"]["blocks"] == 300
    assert document["preserved_summary"]["payload_bytes"] == 4096 * (1 + 3 + 16 + 2 + 256)
    assert document["preserved_summary"]["metadata_bytes"] == 4096 * (300 - 278)
    assert (document["luo"]["session_count"], document["luo"]["file_count"]) == (3, 5)
    _, full, _ = run("inspect", path)
    _, short, _ = run("inspect", "--summary", path)
    assert "alpha" in full and "alpha" not in short and "3 sessions, 5 files" in short


def test_tree_for_people(run: Run) -> None:
    status, out, err = run("inspect", RECORDED / "c3-3sess" / BEFORE)
    assert status == 0 and not err and "\033" not in out
    assert 'session "gamma": 3 files' in out and "seals shrink+grow" in out and "pos 4097" in out
    assert "low: 0x4400000, 48 MiB" in out and "sha256 176b13ff" in out
    assert "├── " in out and "└── " in out
    _, out, _ = run("inspect", RECORDED / "c10-reserve_mem" / SECOND)
    assert "reserve_mem golden at 0x7a27000, 1 MiB" in out and "order  7 (512 KiB): 1" in out
    _, out, _ = run("inspect", RECORDED / "c3-3sess" / "kho-fdt-in.dtb")
    assert "a bare FDT" in out


def test_the_demo(run: Run) -> None:
    status, out, _ = run("check", RECORDED / "demo")
    assert status == 0 and "21 invariants of moment K hold" in out


def test_json_beside_the_image(run: Run, tmp_path: Path) -> None:
    built = build("J")
    path = save(built, tmp_path / "before.pruned.raw")
    status, out, _ = run("check", "--json", path)
    assert status == 0 and "INV-1" in json.loads(out)["not_checked"]
    facts = {
        "kho_fdt_pa": hex(built.fdt_phys),
        "scratch_list_pa": hex(built.scratch_list.phys),
        "scratch": [[hex(area.phys), area.size] for area in built.scratch],
        "when": "machine_kexec() entry, first kernel",
        "e820": [{"addr": 0, "size": 0xA0000, "type": 1}, {"addr": 0x100000, "size": 15 << 20, "type": 1}],
    }
    (tmp_path / "before.json").write_text(json.dumps(facts))
    status, out, _ = run("check", "--json", path)
    document = json.loads(out)
    assert status == 0 and document["moment"] == "J" and "INV-1" in document["checked"]
    facts["kho_fdt_pa"] = hex(built.fdt_phys + 4096)
    (tmp_path / "before.json").write_text(json.dumps(facts))
    status, out, _ = run("check", "--json", path)
    assert status == 1 and json.loads(out)["violations"][0]["id"] == "INV-6"
    status, out, _ = run("check", "--json", "--fdt", built.fdt_phys, path)
    assert status == 0, "an option goes first"
    for text in ("not json", "[]", '{"kho_fdt_pa": "x"}', '{"scratch": 3}', "[" * 100_000):
        (tmp_path / "before.json").write_text(text)
        status, out, err = run("check", "--json", path)
        assert status == 0 and ("ignored" in err or text == "[]")


def test_options(run: Run, tmp_path: Path) -> None:
    built = build("J")
    path = save(built, tmp_path / "image")
    where = f"{built.scratch_list.phys:#x},{built.scratch_list.size}"
    status, out, _ = run("check", "--json", "--fdt", hex(built.fdt_phys), "--scratch", where, path)
    assert status == 0 and {"INV-1", "INV-2", "INV-11"} <= set(json.loads(out)["checked"])
    status, out, _ = run("check", "--json", "--moment", "f", path)
    assert status == 0 and json.loads(out)["moment"] == "F"
    status, out, _ = run("check", "--json", "--moment", "K", "--fdt", built.fdt_phys + 8192, path)
    assert status == 1 and json.loads(out)["violations"][0]["phys"] == built.fdt_phys + 8192


@pytest.mark.parametrize("command", ["inspect", "check"])
@pytest.mark.parametrize(
    ("arguments", "kind", "where"),
    [
        (["--fdt", "zero"], "bad-usage", "--fdt"),
        (["--fdt", "-1"], "bad-usage", "--fdt"),
        (["--scratch", "0x1000"], "bad-usage", "--scratch"),
        (["--scratch", "1,2,3"], "bad-usage", "--scratch"),
        (["--scratch", "0x1000,x"], "bad-usage", "--scratch"),
        (["--moment", "Q"], "bad-usage", "--moment"),
        (["--scratch", "1T,48"], "out-of-range", "0x10000000000"),
        (["--scratch", "0x1000,47"], "bad-format", "0x1000"),
        (["--fdt", "1T"], "out-of-range", "0x10000000000"),
    ],
)
def test_bad_usage(
    run: Run, tmp_path: Path, command: str, arguments: list[str], kind: str, where: str
) -> None:
    path = save(build("J"), tmp_path / "image")
    if arguments[0] == "--fdt" and arguments[1].startswith("-"):
        arguments = [f"--fdt={arguments[1]}"]
    status, out, err = run(command, "--json", *arguments, path)
    error = error_of(out)
    assert (status, error["kind"], error["where"]) == (2, kind, where) and not err
    status, out, err = run(command, *arguments, path)
    assert status == 2 and not out and err.startswith("luemu: ") and err.count("\n") == 1


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_bad_input(run: Run, tmp_path: Path, command: str) -> None:
    nothing = tmp_path / "zeros"
    nothing.write_bytes(bytes(1 << 20))
    text = tmp_path / "text"
    text.write_text("hello")
    broken = tmp_path / "broken.zst"
    broken.write_bytes(zstandard.ZstdCompressor().compress(bytes(1 << 20))[:-3])
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, 62) + bytes(44))
    for path, kind in (
        (nothing, "not-found"), (text, "not-found"), (broken, "bad-image"), (program, "bad-image"),
        (tmp_path / "missing", "bad-image"), (tmp_path, "bad-image"),
    ):  # fmt: skip
        status, out, err = run(command, "--json", path)
        assert status == 2 and not err and error_of(out)["kind"] == kind, path
        status, out, err = run(command, path)
        assert status == 2 and not out and err.count("\n") == 1


def test_broken_root_fdt(run: Run, tmp_path: Path) -> None:
    """inspect cannot decode it; check says which invariant that is."""
    built = build()
    put(built, built.fdt_phys, 0, 4)
    path = save(built, tmp_path / "image")
    status, out, _ = run("inspect", "--json", path)
    assert status == 2 and error_of(out)["kind"] == "bad-format"
    status, out, _ = run("check", "--json", path)
    document = json.loads(out)
    assert status == 1 and document["moment"] == "K"
    assert [(v["id"], v["phys"]) for v in document["violations"]] == [("INV-6", built.fdt_phys)]
    assert document["checked"] == ["INV-6"] and len(document["not_checked"]) == 49


def test_names_cannot_drive_the_terminal(run: Run, tmp_path: Path) -> None:
    built = build()
    built.memory.write(built.addresses["session_block:0"] + 16, b"\x1b[31mred\x07\0")
    path = save(built, tmp_path / "image")
    for command in ("inspect", "check"):
        _, out, _ = run(command, path)
        assert "\x1b" not in out and "\x07" not in out
    _, out, _ = run("inspect", path)
    assert "\\x1b[31mred\\x07" in out


def test_colour_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.Paint(Terminal())("red", "x") == "\033[31mx\033[0m"
    assert output.Paint(io.StringIO())("red", "x") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.Paint(Terminal())("red", "x") == "x"


def test_numbers() -> None:
    known = {"0": 0, "10": 10, "0x10": 16, "0X1f": 31, "48M": 48 << 20, "1k": 1024, "0x10K": 16384,
             "3G": 3 << 30, "1T": 1 << 40, "010": 10}  # fmt: skip
    for text, value in known.items():
        assert parse_number(text, "--x") == value
    for text in ("", "-1", "1.5", "x", "0x", "5X", "1MB", "1 2"):
        with pytest.raises(UsageError):
            parse_number(text, "--x")
    assert [output.size(n) for n in (0, 1, 1023, 1024, 1536, 48 << 20, 5 << 40)] == [
        "0 B", "1 B", "1023 B", "1 KiB", "1.5 KiB", "48 MiB", "5 TiB",
    ]  # fmt: skip
    assert output.amount(1, "page") == "1 page" and output.amount(12345, "page") == "12,345 pages"


def test_trees() -> None:
    tree = Branch("top", [Branch("a", [Branch("b")]), Branch("c")])
    assert list(tree.lines()) == ["top", "├── a", "│   └── b", "└── c"]
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    output.print_tree(tree, stream)
    stream.flush()
    assert stream.buffer.getvalue().decode().splitlines() == ["top", "|-- a", "|   `-- b", "`-- c"]


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_help_has_an_example(run: Run, capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0 and f"luemu {command} " in capsys.readouterr().out
