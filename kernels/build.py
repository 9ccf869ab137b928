"""Toolchain driver: everything in C that the project has is compiled here, by the `ziglang` wheel.

No system compiler is used, the target and its baseline CPU are always explicit, and the result does not
depend on where, when or by whom it is built: the compiler runs in the project's root and sees relative paths
only, debug information names the root "." and linkers are told to leave out build ids. Tests build twice in
different directories and compare.

A target is compiled again only when something it is made from changed: its sources, its flags, the compiler's
version. The digest of those stands beside the result, in `build/stamps/`. Outputs appear atomically, under a
lock, so several processes may build at once.

This module uses the standard library only, because it runs inside pip's build environment.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ZIG_VERSION = "0.17.1"

WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-command-line-argument")
REPRODUCIBLE = ("-ffile-prefix-map=./=", "-fdebug-compilation-dir=.", "-Wl,--build-id=none")
# zig cc turns UBSan on by default; it needs a run-time library that none of these targets has
NO_SANITIZER = ("-fno-sanitize=all", "-fno-stack-protector")

HOST_CORE = (
    "-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64", "-O2", "-g0", "-std=gnu17", "-fPIC", "-shared", "-s",
    "-fvisibility=hidden", *NO_SANITIZER, *WARNINGS, *REPRODUCIBLE,
)  # fmt: skip

LINUX_PROGRAM = (
    "-target", "x86_64-linux-musl", "-mcpu=x86_64", "-O2", "-g0", "-std=gnu17", "-static", "-s",
    *NO_SANITIZER, *WARNINGS, *REPRODUCIBLE,
)  # fmt: skip

# Kernels and bare-metal programs: general registers only, no red zone (interrupts use the same stack), no
# position independence, DWARF for the debugger.
BARE_METAL = (
    "-target", "x86_64-freestanding-none", "-mcpu=x86_64", "-O2", "-g", "-gdwarf-4", "-std=gnu17",
    "-ffreestanding", "-fno-pic", "-fno-pie", "-mno-red-zone", "-mno-sse", "-mno-sse2", "-mno-mmx",
    "-mno-avx", "-mno-80387", "-msoft-float", "-fcf-protection=none", "-fno-asynchronous-unwind-tables",
    "-fno-omit-frame-pointer", "-nostdlib", "-static", *NO_SANITIZER, *WARNINGS, *REPRODUCIBLE,
)  # fmt: skip


# The kernel is linked in the upper 2 GiB and runs at any 2 MiB-aligned physical address.
KERNEL = (
    *BARE_METAL, "-mcmodel=kernel", "-Ikernels", "-Ikernels/include", "-Ikho/guest", "-Iluo/guest",
    "-Wl,-e,startup_64", "-Wl,-z,max-page-size=4096", "-Wl,--no-gc-sections",
)  # fmt: skip
# In the order of their initcalls: KHO copies blobs before LUO consumes its own; LUO's sub-tree is there
# before those that mm/ registers, as in Linux.
KERNEL_PARTS = (
    "kernels/arch", "kho/guest", "luo/guest", "kernels/mm", "kernels/kernel", "kernels/fs", "kernels/drivers",
    "kernels/lib",
)  # fmt: skip
# What runs between two kernels: wherever it is put, and with no library, so loops must stay loops.
PURGATORY = (
    *(f for f in BARE_METAL if f not in ("-fno-pic", "-fno-pie")), "-fpic", "-fvisibility=hidden",
    "-fno-builtin", "-Ikernels/include", "-Wl,-e,purgatory", "-Wl,-T,kernels/purgatory/link.ld",
    "-Wl,-z,max-page-size=4096",
)  # fmt: skip
PURGATORY_BYTES = "build/purgatory.S"


class BuildError(Exception):
    """The toolchain is missing or refused the sources; the message is the compiler's own."""


@dataclass(frozen=True)
class Target:
    """One compiled file.

    Paths are relative to the project's root. `sources` are compiled together in this order; `inputs` are
    patterns of everything that the result depends on (headers, linker scripts). Patterns may match nothing
    only if `optional`: then the target is not built.
    """

    name: str
    output: str
    sources: tuple[str, ...]
    inputs: tuple[str, ...]
    flags: tuple[str, ...]
    optional: bool = False
    script: str | None = None
    """linker script that goes through the C preprocessor first"""
    image: str | None = None
    """bzImage that is made from the result"""
    needs: tuple[str, ...] = ()
    """targets that are built before this one"""
    embedded: str | None = None
    """assembler source that is made from the result: its bytes, as it lies in memory, for another target"""


def kernel(release: str, header: str, output: str, name: str | None = None) -> Target:
    """The kernel of a release. ``header`` is what tells it apart, seen from kernels/ (releases/old.h);
    the bzImage is put beside ``output``, the ELF file."""
    return Target(
        name=name or f"kernel-{release}",
        output=output,
        sources=(*(f"{part}/*.{kind}" for part in KERNEL_PARTS for kind in ("S", "c")), PURGATORY_BYTES),
        inputs=(f"kernels/{header}", "kernels/bzimage.py", "kernels/include/*.h",
                "kernels/purgatory/*.h", *(f"{part}/*.h" for part in KERNEL_PARTS)),
        flags=(*KERNEL, f'-DRELEASE_HEADER="{header}"'),
        script="kernels/link.ld.S",
        image=str(Path(output).with_suffix(".bzImage")),
        needs=("purgatory",),
    )  # fmt: skip


def user_program(name: str, *sources: str) -> Target:
    """A static program that uses the Live Update Orchestrator: a workload for `luemu run`."""
    return Target(
        name=name,
        output=f"kernels/bin/{name}",
        sources=(*sources, "kernels/user/luo.c"),
        inputs=("kernels/user/*.h", "kernels/user/cache/*.h", "kernels/user/net/*.h"),
        flags=LINUX_PROGRAM,
    )


TARGETS: tuple[Target, ...] = (
    Target(
        name="core",
        output="emu/native/libluemu_core.so",
        sources=("emu/native/*.c",),
        inputs=("emu/native/*.h",),
        flags=HOST_CORE,
        optional=True,
    ),
    Target(
        name="init",
        output="kernels/bin/init",
        sources=("kernels/user/init.c", "kernels/user/plan.c", "kernels/user/record.c", "kernels/user/run.c"),
        inputs=("kernels/user/*.h",),
        flags=LINUX_PROGRAM,
    ),
    user_program("cache", "kernels/user/cache/*.c"),
    user_program("net", "kernels/user/net/*.c"),
    user_program("many", "kernels/user/many.c"),
    user_program("sparse", "kernels/user/sparse.c"),
    user_program("abort", "kernels/user/abort.c", "kernels/user/plan.c"),
    Target(
        name="selftest",
        output="kernels/bin/selftest.elf",
        sources=("kernels/selftest/*.S", "kernels/selftest/*.c"),
        inputs=("kernels/selftest/*.h", "kernels/selftest/link.ld"),
        flags=(*BARE_METAL, "-Wl,-e,start64", "-Wl,-T,kernels/selftest/link.ld", "-Wl,-z,max-page-size=4096"),
        optional=True,
    ),
    Target(
        name="purgatory",
        output="kernels/bin/purgatory.elf",
        sources=("kernels/purgatory/entry.S", "kernels/purgatory/*.c", "kernels/lib/sha256.c"),
        inputs=(
            "kernels/purgatory/*.h",
            "kernels/purgatory/link.ld",
            "kernels/include/*.h",
            "kernels/bzimage.py",
        ),
        flags=PURGATORY,
        embedded=PURGATORY_BYTES,
    ),
    kernel("old", "releases/old.h", "kernels/bin/old.elf"),
    kernel("new", "releases/new.h", "kernels/bin/new.elf"),
)


def user_test(name: str) -> Target:
    """A static program for tests, kernels/user/tests/<name>.c, that runs on our kernels and on Linux. It is
    built by its tests only, or as the target ``test-<name>``."""
    return Target(
        name=f"test-{name}",
        output=f"build/tests/{name}",
        sources=(f"kernels/user/tests/{name}.c",),
        inputs=("kernels/user/tests/*.h",),
        flags=LINUX_PROGRAM,
    )


def project_root() -> Path:
    """Root of the source tree that this file is in."""
    return Path(__file__).resolve().parent.parent


def zig() -> Path:
    """The compiler, from the `ziglang` package of the running Python.

    Raises BuildError if it is not installed or is another version than the project pins.
    """
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise BuildError(f"the compiler is missing: pip install ziglang=={ZIG_VERSION}")
    path = Path(spec.origin).parent / ("zig.exe" if os.name == "nt" else "zig")
    if not path.is_file():
        raise BuildError(f"the ziglang package has no {path.name} in {path.parent}")
    version = subprocess.run([path, "version"], capture_output=True, text=True, check=False).stdout.strip()
    if version != ZIG_VERSION:
        found = version or "an unknown version"
        raise BuildError(f"ziglang {found} is installed, the project builds with {ZIG_VERSION}")
    return path


def _expand(root: Path, patterns: Sequence[str]) -> list[Path]:
    """Files that match, in the order of the patterns and sorted within each."""
    found: list[Path] = []
    for pattern in patterns:
        found += [p for p in sorted(root.glob(pattern)) if p.is_file() and p not in found]
    return found


def _digest(root: Path, target: Target, files: Sequence[Path]) -> str:
    """What the result depends on, as one number."""
    h = hashlib.sha256()
    for part in (ZIG_VERSION, target.output, *target.flags):
        h.update(part.encode() + b"\0")
    for path in files:
        data = path.read_bytes()
        h.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode())
        h.update(data)
    return h.hexdigest()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _without_place(toolchain: Path, root: Path) -> list[str]:
    """Flags that keep the compiler's own directory out of debug information: its headers are named
    there, absolutely or, when it is installed below the project, relatively."""
    places = {str(toolchain), os.path.relpath(toolchain, root)}
    return [f"-ffile-prefix-map={place}=ziglang" for place in sorted(places)]


def compile_with_zig(
    root: Path, flags: Sequence[str], sources: Sequence[Path], output: Path, script: Path | None = None
) -> None:
    """Compile `sources`, all of them under `root`, into `output`, atomically. `script` is a linker script
    that goes through the C preprocessor first, with those of the flags that concern it.

    Raises BuildError with the compiler's messages.
    """
    compiler = zig()
    cache = root / "build" / "zig-cache"
    output.parent.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    env = {
        "PATH": os.defpath,
        "LC_ALL": "C",
        "HOME": str(cache),
        "ZIG_GLOBAL_CACHE_DIR": str(cache),
        "ZIG_LOCAL_CACHE_DIR": str(cache),
        "SOURCE_DATE_EPOCH": "0",
    }
    with tempfile.TemporaryDirectory(dir=root / "build", prefix="out-") as tmp:
        made = Path(tmp) / output.name
        if script is not None:
            ready = Path(tmp) / "link.ld"
            command = [str(compiler), "cc", "-E", "-P", "-x", "c", *_preprocessing(flags)]
            command += [script.relative_to(root).as_posix(), "-o", str(ready)]
            run = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
            if run.returncode != 0:
                raise BuildError(f"preprocessing {script.name} failed:\n{run.stderr.strip()}")
            flags = (*flags, f"-Wl,-T,{ready.relative_to(root).as_posix()}")
        command = [str(compiler), "cc", *flags, *_without_place(compiler.parent, root)]
        command += [p.relative_to(root).as_posix() for p in sources]
        command += ["-o", str(made)]
        run = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
        if run.returncode != 0 or not made.is_file():
            raise BuildError(f"compiling {output.name} failed:\n{run.stderr.strip() or run.stdout.strip()}")
        made.chmod(0o755)
        made.replace(output)


def _preprocessing(flags: Sequence[str]) -> list[str]:
    return [f for f in flags if f[:2] in ("-D", "-I")]


def _make_image(root: Path, target: Target, elf: Path) -> None:
    """The bzImage beside a kernel's ELF file, atomically."""
    if target.image is None:
        return
    from kernels import bzimage

    try:
        data = bzimage.bzimage(elf.read_bytes())
    except bzimage.BzImageError as e:
        raise BuildError(f"{target.image}: {e}") from None
    output = root / target.image
    part = output.with_name(output.name + ".part")
    part.write_bytes(data)
    part.replace(output)


def _embed(root: Path, target: Target, elf: Path) -> None:
    """The bytes of a program as assembler source, because the compiler's cache does not know of files that
    `.incbin` names. `<name>_start`, `<name>_end`: the bytes; `<name>_memory`: their number with .bss."""
    if target.embedded is None:
        return
    from kernels import bzimage

    try:
        _, data, size = bzimage.flatten(elf.read_bytes())
    except bzimage.BzImageError as e:
        raise BuildError(f"{target.output}: {e}") from None
    lines = [f".globl {target.name}_start, {target.name}_end, {target.name}_memory",
             '.section .rodata, "a", @progbits', ".balign 16", f"{target.name}_start:"]  # fmt: skip
    lines += [".byte " + ",".join(map(str, data[i : i + 32])) for i in range(0, len(data), 32)]
    lines += [f"{target.name}_end:", ".balign 8", f"{target.name}_memory: .quad {size}", ""]
    output = root / target.embedded
    part = output.with_name(output.name + ".part")
    part.write_text("\n".join(lines))
    part.replace(output)


def build(root: Path, target: Target, *, force: bool = False) -> Path | None:
    """Bring one target up to date and return its path, or None if it is optional and has no sources.

    Raises BuildError. Does nothing, in about a millisecond, when nothing changed.
    """
    for needed in target.needs:
        build(root, next(t for t in TARGETS if t.name == needed))
    sources = _expand(root, target.sources)
    if not sources:
        if target.optional:
            return None
        raise BuildError(f"{target.name}: no file matches {' '.join(target.sources)} in {root}")
    output = root / target.output
    stamp = root / "build" / "stamps" / target.name
    script = None if target.script is None else root / target.script
    inputs = [*sources, *([] if script is None else [script]), *_expand(root, target.inputs)]
    digest = _digest(root, target, inputs)

    def state() -> str:
        made = [output, *(root / name for name in (target.image, target.embedded) if name is not None)]
        return " ".join([digest, *map(_file_digest, made)])

    with _lock(root / "build" / "lock"):
        if force or not stamp.is_file() or stamp.read_text() != state():
            compile_with_zig(root, target.flags, sources, output, script)
            _make_image(root, target, output)
            _embed(root, target, output)
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(state())
    return output


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def build_all(root: Path, names: Sequence[str] = (), *, force: bool = False) -> dict[str, Path]:
    """Build the named targets, all of them by default; what was built or was already there, by name."""
    programs = [user_test(name.removeprefix("test-")) for name in names if name.startswith("test-")]
    unknown = sorted(set(names) - {t.name for t in (*TARGETS, *programs)})
    if unknown:
        known = ", ".join(t.name for t in TARGETS)
        raise BuildError(f"no such target: {', '.join(unknown)} (there are {known})")
    built = {}
    for target in (*TARGETS, *programs):
        if names and target.name not in names:
            continue
        path = build(root, target, force=force)
        if path is not None:
            built[target.name] = path
    return built


def clean(root: Path) -> None:
    """Remove everything that was built, the compiler's cache included."""
    for target in TARGETS:
        (root / target.output).unlink(missing_ok=True)
    shutil.rmtree(root / "build", ignore_errors=True)
    shutil.rmtree(root / "kernels" / "bin", ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m kernels.build [--force] [TARGET…]`, `--clean`."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.build", description="Compile luemu's native parts."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="core, init, selftest (default: all)")
    parser.add_argument("--force", action="store_true", help="compile even if nothing changed")
    parser.add_argument("--clean", action="store_true", help="remove everything that was built")
    args = parser.parse_args(argv)
    root = project_root()
    if not (root / "pyproject.toml").is_file():
        print(f"build: {root} is no source tree but an installed copy, already built", file=sys.stderr)
        return 1
    if args.clean:
        clean(root)
        return 0
    try:
        for name, path in build_all(root, args.targets, force=args.force).items():
            print(f"{name}: {path.relative_to(root)} {_file_digest(path)[:16]}")
    except BuildError as e:
        print(f"build: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
