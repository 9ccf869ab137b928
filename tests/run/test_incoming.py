"""`luemu run --incoming`: our kernels start on what a real Linux 7.2 left in memory, and lose nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from emu.cli import main
from tests.luo.images import RECORDED
from tests.userspace.binaries import binary

Run = Callable[..., dict[str, Any]]
SECOND = sorted(RECORDED.glob("*/second-kernel-kho_populate*.zst"))
BEFORE = sorted(RECORDED.glob("*/before-kexec*.zst"))
SIMPLE = RECORDED / "c1-1x4k" / "second-kernel-kho_populate.pruned.raw.zst"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def called(*words: str | Path, status: int = 0) -> dict[str, Any]:
        assert main(["run", "--json", *map(str, words)]) == status
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return called


def about(image: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(Path(str(image).replace(".pruned.raw.zst", ".json")).read_text())
    return known


def ident(image: Path) -> str:
    return f"{image.parent.name}-{image.name.split('.pruned')[0]}"


def agent(known: dict[str, Any]) -> list[str]:
    """The program that retrieves everything, as it was ordered when it was recorded."""
    spec = " ".join(known["spec"])
    return ["--file", f"{binary('lu')}:/bin/lu", "--after", f"lu s2 {spec}"] if spec else []


def check(d: dict[str, Any], known: dict[str, Any]) -> None:
    assert (d["ok"], d["reasons"], d["violations"]) == (True, [], [])
    assert d["old"] == {"release": "7.2.13-kho", "sha256": None}
    assert d["moments"] == ["J", "K", "F"] and d["memory_bytes"] == 128 << 20
    assert len(d["checked"]) + len(d["not_checked"]) == 50
    expected = known["expected_sha256"]
    found = {f"{s['name']}/{f['token']:#x}": f["sha256"] for s in d["sessions"] for f in s["files"]}
    assert found == expected
    for program in d["programs"]:
        # what the agent read, file by file in the order of its orders
        assert re.findall(r"retrieve_fd .* sha256=(\w+)", program["output"]) == list(expected.values())
        assert "@@S2 bad=0" in program["output"]


def test_there_are_recordings() -> None:
    assert len(SECOND) >= 7 and len(BEFORE) >= 7


@pytest.mark.parametrize("release", ["old", "new"])
@pytest.mark.parametrize("image", SECOND, ids=ident)
def test_a_handover_of_linux_is_adopted(run: Run, image: Path, release: str) -> None:
    known = about(image)
    reserved = re.findall(r"reserve_mem=\S+", known["cmdline"])
    words = ["--cmdline", " ".join(reserved)] if reserved else []
    d = run("--incoming", image, "--new", release, *agent(known), *words)
    check(d, known)
    phases = [p["id"] for p in d["phases"]]
    assert phases[0] == "P12" and {"P13", "P14", "P15", "P17"} <= set(phases)
    assert {p["kernel"] for p in d["phases"]} == {"new"} and d["digest_instructions"] == 0
    if known["spec"]:
        assert {"P18", "P19", "P20", "P21"} <= set(phases)


@pytest.mark.parametrize("image", BEFORE, ids=ident)
def test_an_image_of_the_jump_will_do(run: Run, image: Path) -> None:
    """As it was left, before the next kernel was entered."""
    known = about(image)
    check(run("--incoming", image, *agent(known)), known)


def test_our_own_dump(run: Run, tmp_path: Path) -> None:
    """In each format that is written; the cache is found as it was."""
    words: list[str] = []
    names = ["j.raw", "j.zst", "j.elf"]
    for name in names:
        words += ["--dump", f"J={tmp_path / name}"]
    first = run("--preserve", "4M", "--memory", "256M", *words)
    program = "kernels/bin/cache:/bin/cache"
    for name in names:
        d = run("--incoming", tmp_path / name, "--new", "old", "--file", program, "--after", "cache check")
        assert (d["ok"], d["reasons"]) == (True, [])
        assert d["old"]["release"] == first["old"]["release"] and d["cache"]["lost"] == 0 < d["cache"]["keys"]


def test_a_saved_machine(run: Run, tmp_path: Path) -> None:
    run("--preserve", "4M", "--memory", "256M", "--save", f"J={tmp_path / 'j.saved'}")
    program = "kernels/bin/cache:/bin/cache"
    d = run("--incoming", tmp_path / "j.saved", "--file", program, "--after", "cache check")
    assert d["ok"] is True and d["cache"]["last_write_survived"] is True


def test_without_an_agent_everything_stays(run: Run) -> None:
    d = run("--incoming", SIMPLE)
    assert (d["ok"], d["programs"]) == (True, []) and d["sessions"][0]["name"] == "one"


# --- what cannot be ---------------------------------------------------------------------------------------


def copy(tmp_path: Path, image: Path = SIMPLE) -> tuple[Path, dict[str, Any]]:
    target = tmp_path / image.name
    shutil.copy(image, target)
    return target, about(image)


def describe(target: Path, known: dict[str, Any]) -> None:
    Path(str(target).replace(".pruned.raw.zst", ".json")).write_text(json.dumps(known))


def test_contents_that_are_not_what_the_json_says(run: Run, tmp_path: Path) -> None:
    target, known = copy(tmp_path)
    known["expected_sha256"]["one/0x1"] = "0" * 64
    describe(target, known)
    d = run("--incoming", target, status=1)
    assert d["reasons"] == ["one/0x1 is not in the image with the sha256 that its .json says"]


def first_word(token: int) -> bytes:
    """Of a file of lu: splitmix64(token)."""
    mask = (1 << 64) - 1
    z = token + 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return (z ^ z >> 31).to_bytes(8, "little")


def test_a_page_that_is_damaged(run: Run, tmp_path: Path) -> None:
    """The agent reads another sum than was recorded, and the host knew it before."""
    target, known = copy(tmp_path)
    memory = bytearray(zstandard.ZstdDecompressor().decompressobj().decompress(target.read_bytes()))
    memory[memory.index(first_word(1))] ^= 1
    target.write_bytes(zstandard.ZstdCompressor().compress(bytes(memory)))
    describe(target, known)
    d = run("--incoming", target, *agent(known), status=1)
    assert "one/0x1 is not in the image with the sha256 that its .json says" in d["reasons"]
    assert known["expected_sha256"]["one/0x1"] not in d["programs"][0]["output"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scratch": [["0x4400000", "0x140000"]]}, "does not fit below 0x453f000"),
        ({"e820": [{"addr": 0, "size": 1 << 40, "type": 1}]}, "has RAM at 0x0 that a machine of"),
        ({"kho_fdt_pa": "0x1000"}, ""),
    ],
    ids=["scratch", "e820", "fdt"],
)
def test_a_json_that_does_not_fit(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, known = copy(tmp_path)
    describe(target, known | change)
    assert main(["run", "--incoming", str(target)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err, err


def test_images_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    (tmp_path / "text").write_text("no image")
    fdt = RECORDED / "c1-1x4k" / "kho-fdt-in.dtb"
    for image in (tmp_path / "missing", tmp_path / "zeros", tmp_path / "text", fdt, tmp_path):
        assert main(["run", "--incoming", str(image)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and str(image) in err, err


@pytest.mark.parametrize(
    "words",
    [
        ["--old", "old"],
        ["--before", "true"],
        ["--workload", "cache"],
        ["--updates", "1"],
        ["--memory", "1G"],
        ["--preserve", "4M"],
        ["--new", "old", "--new", "new"],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--incoming", str(SIMPLE), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "--incoming" in err
