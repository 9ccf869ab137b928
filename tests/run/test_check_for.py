"""`luemu check IMAGE --for KERNEL`: the prediction, and that what happens then is what it said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emu.cli import main
from tests.cli.guests import endless_loop
from tests.luo.images import RECORDED
from tests.run.elf import elf
from tests.run.releases import skewed

SMALL_RUN = (
    "run", "--workload", "kho", "--memory", "128M", "--preserve", "256K",
    "--cmdline", "reserve_mem=1M:4K:trace",
)  # fmt: skip
LINUX_IMAGE = RECORDED / "c3-3sess" / "before-kexec.pruned.raw.zst"
Predict = Callable[..., dict[str, Any]]


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Predict:
    """The JSON of a check that must end with this status."""

    def called(image: Path, kernel: str | Path, status: int) -> dict[str, Any]:
        assert main(["check", "--json", str(image), "--for", str(kernel)]) == status
        out, err = capsys.readouterr()
        assert err == ""
        document: dict[str, Any] = json.loads(out)
        assert document["ok"] is (status == 0)
        return document

    return called


@pytest.fixture(scope="module")
def handover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What release old hands over, at J."""
    image = tmp_path_factory.mktemp("handover") / "j.raw"
    assert main([*SMALL_RUN, "--json", "--dump", f"J={image}"]) == 0
    return image


def accepting(tmp_path: Path, **symbols: str) -> Path:
    """An ELF file that accepts these versions."""
    data, table = b"", {}
    for kind, version in symbols.items():
        table[f"{kind}_compatible"] = 0x2000 + len(data)
        data += version.encode() + b"\0"
    path = tmp_path / "kernel.elf"
    path.write_bytes(elf(None, symbols=table, sections=[(".rodata", 0x2000, data)]))
    return path


@pytest.mark.parametrize("release", ["old", "new"])
def test_our_kernels_take_what_ours_hand_over(release: str, handover: Path, predict: Predict) -> None:
    d = predict(handover, release, 0)["prediction"]
    assert (d["kernel"], d["adopts"], d["lost"]) == (release, True, [])
    assert d["accepts"]["kho"] == ["kho-v4"] and d["written"]["kho"] == "kho-v4"


def test_everything_that_is_lost_is_named(handover: Path, tmp_path: Path, predict: Predict) -> None:
    d = predict(handover, accepting(tmp_path, kho="kho-v5"), 1)
    assert d["violations"] == [], "there is nothing wrong with the handover"
    prediction = d["prediction"]
    assert prediction["adopts"] is False and prediction["accepts"] == {"kho": ["kho-v5"]}
    lost = {item["what"]: item["bytes"] for item in prediction["lost"]}
    assert lost["reserve_mem region trace"] == 1 << 20
    assert lost["luemu_test vmalloc@0"] == 600 * 4096
    (folios,) = (size for what, size in lost.items() if what.startswith("kho_test, "))
    assert folios == 256 << 10
    (all_of_it,) = (size for what, size in lost.items() if what.startswith("all memory that is preserved, "))
    assert all_of_it > sum(size for what, size in lost.items() if not what.startswith("all memory"))


def test_sessions_are_lost_with_luo_of_another_version(tmp_path: Path, predict: Predict) -> None:
    d = predict(LINUX_IMAGE, accepting(tmp_path, kho="kho-v4", luo="luo-v6", memfd="memfd-v2"), 1)[
        "prediction"
    ]
    assert d["adopts"] is True and d["written"] == {"kho": "kho-v4", "luo": "luo-v5"}
    assert [item["what"] for item in d["lost"]] == [
        'session "alpha", 2 files', 'session "beta", 0 files', 'session "gamma", 3 files',
    ]  # fmt: skip
    assert d["lost"][0]["bytes"] == 4 * 4096
    assert d["refused"] == [
        {"what": "LUO state of version luo-v5", "reaction": "it panics in early boot"}
    ] and d["accepted"] == []  # fmt: skip


def test_files_are_lost_with_memfds_of_another_version(tmp_path: Path, predict: Predict) -> None:
    d = predict(LINUX_IMAGE, accepting(tmp_path, kho="kho-v4", luo="luo-v5", memfd="memfd-v3"), 1)[
        "prediction"
    ]
    assert d["adopts"] is True and len(d["refused"]) == 5 and d["accepted"] == []
    assert d["refused"][0]["what"] == 'file 0x1 of session "alpha", of version memfd-v2'
    assert "so that no session can be retrieved" in d["refused"][0]["reaction"]
    # a kernel that is not the project's: one file that it does not know costs it all sessions
    assert [item["what"] for item in d["lost"]] == [
        'session "alpha", 2 files', 'session "beta", 0 files', 'session "gamma", 3 files',
    ]  # fmt: skip


def test_a_kernel_that_takes_all_of_linux(tmp_path: Path, predict: Predict) -> None:
    kernel = accepting(tmp_path, kho="kho-v4", luo="luo-v5", memfd="memfd-v2")
    assert predict(LINUX_IMAGE, kernel, 0)["prediction"]["lost"] == []


def test_for_people(handover: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(handover), "--for", "new"]) == 0
    assert "new (7.2.2-luemu) accepts kho-v4: it will adopt this handover" in capsys.readouterr().out
    assert main(["check", str(handover), "--for", str(accepting(tmp_path, kho="kho-v5"))]) == 1
    out = capsys.readouterr().out
    assert "kernel.elf accepts kho-v5 and this is kho-v4: it will boot cold and lose" in out
    assert "reserve_mem region trace: 1 MiB" in out


@pytest.mark.parametrize("kind", ["missing", "loop", "text"])
def test_kernels_that_do_not_tell(
    kind: str, handover: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless_loop(tmp_path / "loop")
    (tmp_path / "text").write_text("no kernel\n" * 1000)
    assert main(["check", str(handover), "--for", str(tmp_path / kind)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(tmp_path / kind) in err


# --- releases that differ in nothing but their version --------------------------------------------------


@pytest.fixture(scope="module")
def skew() -> Path:
    return skewed("kho-v9")


def test_the_prediction_comes_true(
    skew: Path, handover: Path, predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    """It boots cold with Linux' message, and the run says so."""
    assert predict(handover, skew, 1)["prediction"]["adopts"] is False
    assert main([*SMALL_RUN, "--new", str(skew), "-v"]) == 1
    out = capsys.readouterr().out
    assert "is incompatible with 'kho-v9'" in out and "disabling KHO revival" in out
    name = skew.name
    assert f"not ok: kernel 1 ({name}) did not take the handover: it boots cold, everything is lost" in out
    assert "P15 adopt" not in out, "a kernel that boots cold adopts nothing"


def test_a_handover_of_an_unknown_version(
    skew: Path, tmp_path: Path, predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot be decoded here, and whether it will be taken can be told all the same."""
    image = tmp_path / "j.raw"
    assert main([*SMALL_RUN, "--json", "--old", str(skew), "--new", "new", "--dump", f"J={image}"]) == 1
    capsys.readouterr()
    for with_json_beside in (True, False):
        if not with_json_beside:
            (tmp_path / "j.json").unlink()
        d = predict(image, "new", 1)
        assert d["checked"] == [] and set(d["not_checked"].values()) == {
            "the handover has the unknown version kho-v9"
        }
        assert d["prediction"]["adopts"] is False and d["prediction"]["written"] == {"kho": "kho-v9"}
        lost = {item["what"] for item in d["prediction"]["lost"]}
        assert {"all memory that is preserved", "sub-tree kho_test", "sub-tree memblock"} <= lost
        assert predict(image, skew, 0)["prediction"]["adopts"] is True


# --- releases that differ in nothing but their version of LUO or of memfds -----------------------------

CACHE_RUN = ("run", "--workload", "cache", "--preserve", "4M", "--memory", "256M")


def update_and_predict(
    old: str | Path, new: str | Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(prediction for the handover at J, what then happened) of an update under the cache."""
    image = tmp_path / "j.raw"
    words = ["--old", str(old), "--new", str(new), "--dump", f"J={image}", "--json"]
    happened = main([*CACHE_RUN, *words])
    run = json.loads(capsys.readouterr().out)
    assert happened == (0 if run["ok"] else 1)
    status = main(["check", "--json", str(image), "--for", str(new)])
    document = json.loads(capsys.readouterr().out)
    assert status == (0 if document["ok"] else 1)
    prediction: dict[str, Any] = document["prediction"]
    return prediction, run


def said(run: dict[str, Any]) -> str:
    return "".join(p["output"] for p in run["programs"] if p["when"] == "after")


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("new", "old")])
def test_what_is_accepted_is_there(
    old: str, new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction, run = update_and_predict(old, new, tmp_path, capsys)
    assert prediction["accepted"] == ['session "cache"', 'session "cache-client"']
    assert prediction["refused"] == prediction["lost"] == []
    assert run["ok"] is True and run["cache"]["lost"] == 0


@pytest.mark.campaign  # a kernel more to build
def test_luo_of_another_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prediction, run = update_and_predict("old", skewed("luo-v6"), tmp_path, capsys)
    assert prediction["adopts"] is True and prediction["accepted"] == []
    assert prediction["refused"] == [
        {"what": "LUO state of version luo-v5", "reaction": "/dev/liveupdate cannot be opened (EIO)"}
    ]
    assert [item["what"] for item in prediction["lost"]] == [
        'session "cache", 2 files', 'session "cache-client", 1 file',
    ]  # fmt: skip
    assert run["ok"] is False and run["cache"] is None
    assert "cache: /dev/liveupdate: I/O error" in said(run)


def test_memfds_of_another_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prediction, run = update_and_predict("old", skewed("memfd-v3"), tmp_path, capsys)
    assert prediction["accepted"] == ['session "cache"', 'session "cache-client"']
    assert {item["reaction"] for item in prediction["refused"]} == {"EIO when it is retrieved"}
    assert [item["what"] for item in prediction["lost"]] == [
        'file 0x1 of session "cache", of version memfd-v2',
        'file 0x2 of session "cache", of version memfd-v2',
        'file 0x3 of session "cache-client", of version memfd-v2',
    ]
    assert prediction["lost"][0]["bytes"] == 4 << 20
    assert run["ok"] is False and "cache: retrieve a file: I/O error" in said(run)


@pytest.mark.parametrize("version", [pytest.param("luo-v6", marks=pytest.mark.campaign), "memfd-v3"])
def test_what_a_later_release_hands_over(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To a kernel that does not know it, and to its like."""
    image = skewed(version)
    prediction, run = update_and_predict(image, "old", tmp_path, capsys)
    assert prediction["written"]["luo"] == (version if version.startswith("luo") else "luo-v5")
    assert len(prediction["refused"]) == (1 if version.startswith("luo") else 3)
    assert prediction["lost"] and run["ok"] is False and "I/O error" in said(run)
    prediction, run = update_and_predict(image, image, tmp_path, capsys)
    assert prediction["refused"] == [] == prediction["lost"]
    assert run["cache"] is not None and run["cache"]["lost"] == 0, "they understand each other"


def test_a_prediction_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "j.raw"
    assert main([*CACHE_RUN, "--json", "--dump", f"J={image}"]) == 0
    capsys.readouterr()
    assert main(["check", str(image), "--for", str(skewed("memfd-v3"))]) == 1
    out = capsys.readouterr().out
    assert "it will adopt this handover, but lose" in out
    assert 'file 0x1 of session "cache", of version memfd-v2: 4 MiB' in out
    assert 'it will refuse file 0x1 of session "cache", of version memfd-v2: EIO when it is retrieved' in out
    assert 'it will have session "cache", session "cache-client"' in out
