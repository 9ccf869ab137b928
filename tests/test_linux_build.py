"""The recipe of the reference Linux, without building it: where it looks, what it refuses, what it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.linux import build
from tests.oracles import require

ETC = {
    "sources.list.d/other.sources": "Types: deb\nURIs: https://other.example/node\nSuites: x\n",
    "sources.list.d/debian.sources": (
        "Types: deb\n# a comment\nURIs: http://mirror.example/debian-security\nSuites: s\n\n"
        "Types: deb\nURIs: http://mirror.example/debian/\nSuites: stable\nSigned-By: /keys/d.gpg\n"
    ),
}


@pytest.fixture(autouse=True)
def no_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LUEMU_CACHE", "LUEMU_DEBIAN_MIRROR", "LUEMU_LINUX_DEB"):
        monkeypatch.delenv(name, raising=False)


def write(etc: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (etc / name).parent.mkdir(parents=True, exist_ok=True)
        (etc / name).write_text(text)
    return etc


def test_the_mirror_that_apt_uses(tmp_path: Path) -> None:
    assert build.mirror(write(tmp_path, ETC)) == ("http://mirror.example/debian/", "/keys/d.gpg")


@pytest.mark.parametrize("line", ["deb {} stable main\n", "deb [arch=amd64] {} stable main\n"])
def test_a_mirror_in_the_one_line_format(tmp_path: Path, line: str) -> None:
    uri = "https://mirror.example/debian"
    write(tmp_path, {"sources.list": "# deb http://no.example/debian x main\n" + line.format(uri)})
    assert build.mirror(tmp_path)[0] == uri


def test_no_mirror_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"sources.list": "deb http://archive.example/ubuntu noble main\n"})
    with pytest.raises(build.LinuxBuildError, match="LUEMU_DEBIAN_MIRROR"):
        build.mirror(tmp_path)
    monkeypatch.setenv("LUEMU_DEBIAN_MIRROR", "http://chosen.example/debian")
    assert build.mirror(tmp_path)[0] == "http://chosen.example/debian"


def test_another_version_of_the_package_is_refused(tmp_path: Path) -> None:
    control = tmp_path / "tree" / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    fields = ("Package: linux-source-7.2", "Version: 7.2.131-1", "Architecture: all", "Maintainer: x <x@x>")
    control.write_text("\n".join([*fields, "Description: x", ""]))
    package = tmp_path / "p.deb"
    command: list[str | Path] = [require("dpkg-deb"), "-b", tmp_path / "tree", package]
    subprocess.run(command, check=True, capture_output=True)
    message = r"p\.deb is version 7\.2\.131-1, the reference is 7\.2\.13"
    with pytest.raises(build.LinuxBuildError, match=message):
        build.unpack(package, tmp_path, tmp_path / "log")


def test_missing_tools_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NEEDED", {"sh": "dash", "no-such-tool": "b", "/no/such/header.h": "a"})
    with pytest.raises(build.LinuxBuildError, match=r"apt-get install a b$"):
        build.check_needed()


def test_a_failing_step_shows_the_end_of_its_log(tmp_path: Path) -> None:
    message = r"building Linux failed \(sh -c(.|\n)*no rule"
    with pytest.raises(build.LinuxBuildError, match=message):
        build.run(["sh", "-c", "echo no rule; exit 2"], tmp_path, tmp_path / "log")


def test_builds_are_kept_by_version_and_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUEMU_CACHE", str(tmp_path))
    plain, other = (build.directory(c) for c in build.CONFIGS)
    assert plain != other and plain.parent == tmp_path and plain.name.startswith("linux-7.2.13-")
    assert build.find() is None
    done = tmp_path / "work"
    done.mkdir()
    (done / "bzImage").write_bytes(b"x")
    build.keep(done, plain)
    found = build.find()
    assert found is not None and found.bzimage.read_bytes() == b"x"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("keeping")] == []
    assert build.ensure() == [found]  # and is not built again


def test_what_a_killed_build_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUEMU_CACHE", str(tmp_path))
    for name in ("building-abc", "keeping-abc", "linux-7.2.13-other"):
        (tmp_path / name / "inside").mkdir(parents=True)

    def stop(*_: object) -> Path:
        raise build.LinuxBuildError("no mirror")

    monkeypatch.setattr(build, "check_needed", lambda: None)
    monkeypatch.setattr(build, "fetch", stop)
    with pytest.raises(build.LinuxBuildError, match="no mirror"):
        build.ensure()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["linux-7.2.13-other", "lock"]


def test_the_configurations_have_what_a_live_update_needs() -> None:
    for name in build.CONFIGS:
        lines = (build.DATA / name).read_text().splitlines()
        for option in ("KEXEC_HANDOVER", "LIVEUPDATE", "LIVEUPDATE_MEMFD", "KEXEC_FILE", "DEVTMPFS"):
            assert f"CONFIG_{option}=y" in lines, (name, option)
