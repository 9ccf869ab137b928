"""The toolchain driver: identical binaries anywhere, rebuilt when and only when something changed."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from kernels import BIN_DIR, binary, build

ROOT = build.project_root()


def copy_sources(of: Path, to: Path, *, share_cache: bool = True) -> Path:
    """The C sources in a project of their own. With the compiler's cache, or musl is compiled again."""
    for directory in ("emu/native", "kernels", "kho/guest", "luo/guest"):
        if (of / directory).is_dir():
            ignore = shutil.ignore_patterns("*.so", "__pycache__", "bin")
            shutil.copytree(of / directory, to / directory, ignore=ignore)
    (to / "build").mkdir()
    if share_cache:
        (ROOT / "build/zig-cache").mkdir(parents=True, exist_ok=True)
        (to / "build/zig-cache").symlink_to(ROOT / "build/zig-cache")
    return to


def digests(root: Path, names: Sequence[str] = ()) -> dict[str, str]:
    """Of these targets, or of everything that is built; a kernel is an ELF file and the bzImage beside it."""
    files = dict(build.build_all(root, names))
    for name in ("old", "new"):
        if f"kernel-{name}" in files:
            files[f"{name}.bzImage"] = files[f"kernel-{name}"].with_suffix(".bzImage")
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one target's worth of C: fast to compile."""
    (tmp_path / "a.c").write_text('#include "a.h"\nint f(void) { return A; }\n')
    (tmp_path / "a.h").write_text("#define A 1\n")
    return tmp_path


TARGET = build.Target("demo", "out/demo.elf", ("*.c",), ("*.h",), (*build.BARE_METAL, "-Wl,-e,f"))


def test_binaries_do_not_depend_on_the_directory(tmp_path: Path) -> None:
    """In directories of different names and depths, one with a space in it: this project's, and a new one.
    Here what is small, of each kind; the campaign builds all, kernels too."""
    kinds = ("core", "init", "cache", "purgatory")
    found = digests(ROOT, kinds)
    assert digests(copy_sources(ROOT, tmp_path / "another place" / "deeper"), kinds) == found
    assert len(set(found.values())) == len(found), "no two of them are the same file"


@pytest.mark.campaign
def test_binaries_do_not_depend_on_the_compilers_cache(tmp_path: Path) -> None:
    here = copy_sources(ROOT, tmp_path / "here")
    assert digests(copy_sources(here, tmp_path / "fresh", share_cache=False)) == digests(here)


def test_debug_information_names_no_place(project: Path) -> None:
    path = build.build(project, TARGET)
    assert path is not None
    data = path.read_bytes()
    assert b"a.c\0" in data
    assert str(project).encode() not in data
    assert b"site-packages" not in data and b"/zig" not in data


def test_nothing_is_compiled_twice(project: Path) -> None:
    path = build.build(project, TARGET)
    assert path is not None
    before = path.stat().st_mtime_ns
    build.build(project, TARGET)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["source", "header", "flags", "output", "stamp", "force"])
def test_what_changed_is_compiled_again(project: Path, change: str) -> None:
    path = build.build(project, TARGET)
    assert path is not None
    before = path.read_bytes(), path.stat().st_mtime_ns
    target = TARGET
    if change == "source":
        (project / "a.c").write_text("int f(void) { return 7; }\n")
    elif change == "header":
        (project / "a.h").write_text("#define A 2\n")
    elif change == "flags":
        target = build.Target("demo", TARGET.output, TARGET.sources, TARGET.inputs, (*TARGET.flags, "-DB"))
    elif change == "output":
        path.write_bytes(b"damaged")
    elif change == "stamp":
        (project / "build/stamps/demo").unlink()
    build.build(project, target, force=change == "force")
    assert path.stat().st_mtime_ns != before[1]
    assert (path.read_bytes() != before[0]) == (change in ("source", "header"))


def test_a_compile_error_is_a_typed_error_and_leaves_no_output(project: Path) -> None:
    (project / "a.c").write_text("int f(void) { return x; }\n")
    with pytest.raises(build.BuildError, match=r"a\.c:1:.*undeclared identifier 'x'"):
        build.build(project, TARGET)
    assert not (project / "out/demo.elf").exists()


def test_a_warning_is_an_error(project: Path) -> None:
    (project / "a.c").write_text("int f(int unused) { return 1; }\n")
    with pytest.raises(build.BuildError, match="unused-parameter"):
        build.build(project, TARGET)


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match=r"no file matches \*\.c"):
        build.build(tmp_path, TARGET)
    optional = build.Target("demo", "o", ("*.c",), (), (), optional=True)
    assert build.build(tmp_path, optional) is None
    with pytest.raises(build.BuildError, match="no such target: nothing"):
        build.build_all(ROOT, ["nothing"])


def test_a_missing_compiler_says_what_to_install(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match=r"pip install ziglang==0\.17\.1"):
        build.build(project, TARGET)


def test_a_missing_guest_says_how_to_build_it() -> None:
    assert binary("init") == BIN_DIR / "init"
    with pytest.raises(FileNotFoundError, match=r"python -m kernels\.build"):
        binary("nothing")


def test_the_core_needs_an_old_glibc_only() -> None:
    """What the wheel's tag (manylinux_2_17) promises."""
    core = build.build_all(ROOT, ["core"])["core"].read_bytes()
    versions = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_([0-9.]+)\0", core)}
    assert versions and max(versions) <= (2, 17)


def test_init_is_static_and_small() -> None:
    from elftools.elf.elffile import ELFFile

    path = build.build_all(ROOT, ["init"])["init"]
    with path.open("rb") as f:
        kinds = {s.header["p_type"] for s in ELFFile(f).iter_segments()}
    assert "PT_INTERP" not in kinds and "PT_DYNAMIC" not in kinds
    assert path.stat().st_size < 65536


def test_one_version_of_the_compiler_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pin = f"ziglang=={build.ZIG_VERSION}"
    assert pin in project["build-system"]["requires"]
    assert pin in project["project"]["optional-dependencies"]["dev"]


def test_all_dependencies_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    everything = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    everything += project["project"]["optional-dependencies"]["dev"]
    assert all(re.fullmatch(r"[a-z-]+==[0-9.]+", d) for d in everything), everything
    assert "unicorn==2.1.4" in everything


def test_the_makefile_lists_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert phony is not None
    for name in {"run", "test", "test-linux", "campaign", "lint", "bench", "clean"} - set(phony[1].split()):
        pytest.fail(f"make {name} is missing")


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_make_says_when_python_is_missing_or_too_old(tmp_path: Path, python: str) -> None:
    for name in ("Makefile", "pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    run = subprocess.run(
        ["make", "install", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "luemu needs Python 3.11 or newer" in run.stderr


def test_make_repairs_what_an_interrupted_run_left(tmp_path: Path) -> None:
    """An environment without pip is made anew, and .venv is never left half made."""
    for name in ("Makefile", "pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    # says that it is new enough, notes that a venv is asked for, and cannot make it
    fake = tmp_path / "fake-python"
    fake.write_text('#!/bin/sh\ncase "$1" in -c) exit 0;; esac\necho "$@" > asked\nexit 1\n')
    fake.chmod(0o755)
    run = subprocess.run(
        ["make", "install", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0 and "apt-get install python3-venv" in run.stderr, run
    assert (tmp_path / "asked").read_text() == "-m venv .venv\n"
    assert not (tmp_path / ".venv").exists()
