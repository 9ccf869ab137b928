"""Build the two reference Linuxes that `make test-linux` runs, from Debian's kernel source package.

    python -m tests.linux.build [--config linux-config|linux-config-test]

Nothing of Linux is in this repository: the sources are fetched with apt from the Debian mirror that this
machine is configured to use, whatever its own release is, and nothing is installed. The result is kept in
`$LUEMU_CACHE` (default ~/.cache/luemu) under the version, and a digest of the configuration and of this
recipe; it appears there only when complete. About six minutes each on two cores; three gigabytes while they
are built.

`LUEMU_DEBIAN_MIRROR` names another mirror, `LUEMU_LINUX_DEB` a linux-source package that is already there.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.oracles import absent

VERSION = "7.2.13"
PACKAGE = "linux-source-7.2"
SUITE = "sid"  # the suite that has the package
RECIPE = 1  # counts changes of what is built here that the configuration does not show
DATA = Path(__file__).resolve().parent.parent / "data"
CONFIGS = ("linux-config", "linux-config-test")
"""The second has the kernel's own tests of KHO and LUO built in, VT-d, interrupt remapping, iommufd and VFIO,
and the driver of the e1000."""
SELFTESTS = ("liveupdate", "luo_kexec_simple", "luo_multi_session", "luo_stress_sessions", "luo_stress_files")

# Program or header → Debian package, checked before anything is fetched.
NEEDED = {
    "apt-get": "apt", "dpkg": "dpkg", "gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison",
    "bc": "bc", "cpio": "cpio", "rsync": "rsync", "xz": "xz-utils", "tar": "tar", "perl": "perl-base",
    "/usr/include/libelf.h": "libelf-dev", "/usr/include/openssl/ssl.h": "libssl-dev",
    "/usr/include/stdio.h": "libc6-dev",
}  # fmt: skip


class LinuxBuildError(Exception):
    """The reference Linux can not be built here; the message says what to do."""


@dataclass(frozen=True)
class LinuxBuild:
    """A finished build."""

    root: Path

    @property
    def bzimage(self) -> Path:
        """The kernel as it is booted."""
        return self.root / "bzImage"

    @property
    def vmlinux(self) -> Path:
        """The same as ELF, with symbols and without DWARF."""
        return self.root / "vmlinux"

    @property
    def system_map(self) -> Path:
        """Its symbols."""
        return self.root / "System.map"

    @property
    def lu(self) -> Path:
        """The tool that preserves and retrieves: `lu s1 SPEC`, `lu s2 SPEC`."""
        return self.root / "lu"

    @property
    def do_kexec(self) -> Path:
        """The script that goes with the self-tests."""
        return self.root / "do_kexec.sh"

    def selftest(self, name: str) -> Path:
        """One of SELFTESTS."""
        return self.root / "selftests" / name


def cache() -> Path:
    """Where builds are kept."""
    chosen = os.environ.get("LUEMU_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "luemu"


def directory(config: str = CONFIGS[0]) -> Path:
    """Where the build of `config` is or will be."""
    h = hashlib.sha256(f"{RECIPE}\0".encode())
    for name in (config, "lu.c"):
        h.update((DATA / name).read_bytes())
    return cache() / f"linux-{VERSION}-{h.hexdigest()[:16]}"


def find(config: str = CONFIGS[0]) -> LinuxBuild | None:
    """The finished build of `config`, if there is one."""
    path = directory(config)
    return LinuxBuild(path) if path.is_dir() else None


def required(config: str = CONFIGS[0]) -> LinuxBuild:
    """The finished build of `config`; without it the running test is skipped, and fails in CI."""
    build = find(config)
    if build is None:
        absent(f"the reference Linux of tests/data/{config}", "make test-linux builds it")
        raise AssertionError("unreachable")
    return build


def run(command: Sequence[str | Path], cwd: Path, log: Path) -> None:
    """Run one step, its output into the log. Raises LinuxBuildError with the log's end."""
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "TMPDIR") or k.endswith("_proxy")}
    env |= {
        "LC_ALL": "C", "TZ": "UTC",
        "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 2026", "KBUILD_BUILD_USER": "luemu",
        "KBUILD_BUILD_HOST": "luemu", "KBUILD_BUILD_VERSION": "1",
    }  # fmt: skip
    with log.open("ab") as out:
        out.write(f"$ {' '.join(map(str, command))}\n".encode())
        out.flush()
        done = subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False
        )
    if done.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        raise LinuxBuildError(f"building Linux failed ({' '.join(map(str, command[:3]))} …):\n{end}")


def check_needed() -> None:
    """Raise LinuxBuildError naming every missing tool at once."""
    missing = sorted(
        package
        for what, package in NEEDED.items()
        if not (Path(what).exists() if what.startswith("/") else shutil.which(what))
    )
    if missing:
        raise LinuxBuildError(f"building Linux needs more tools: apt-get install {' '.join(missing)}")


def mirror(etc: Path = Path("/etc/apt")) -> tuple[str, str]:
    """URI of the Debian mirror that apt is configured with, and the keyring that it is trusted by."""
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    chosen = os.environ.get("LUEMU_DEBIAN_MIRROR")
    if chosen:
        return chosen, keyring
    for path in sorted(etc.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text(errors="replace")):
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.M))
            for uri in fields.get("URIs", "").split():
                if uri.rstrip("/").endswith("/debian"):
                    signed = fields.get("Signed-By", "")
                    return uri, signed if signed.startswith("/") else keyring
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]:
        if path.is_file():
            text = path.read_text(errors="replace")
            found = re.search(r"^deb\s+(?:\[.*?\]\s+)?(\S+/debian/?)\s", text, re.M)
            if found:
                return found[1], keyring
    raise LinuxBuildError(
        "apt is configured with no Debian mirror: set LUEMU_DEBIAN_MIRROR to the URI of one (…/debian), "
        f"or LUEMU_LINUX_DEB to a {PACKAGE} package of version {VERSION}"
    )


def fetch(work: Path, log: Path) -> Path:
    """Download the source package, with lists and caches of its own: the system's apt is not touched."""
    chosen = os.environ.get("LUEMU_LINUX_DEB")
    if chosen:
        return Path(chosen).resolve()
    uri, keyring = mirror()
    for d in ("lists/partial", "cache/archives/partial", "download"):
        (work / d).mkdir(parents=True)
    (work / "sources.list").write_text(f"deb [signed-by={keyring}] {uri} {SUITE} main\n")
    apt: list[str | Path] = ["apt-get", "-q"]
    for option in (
        f"Dir::State::Lists={work / 'lists'}", f"Dir::Etc::SourceList={work / 'sources.list'}",
        "Dir::Etc::SourceParts=/dev/null", f"Dir::Cache={work / 'cache'}", "APT::Sandbox::User=root",
        "Debug::NoLocking=true", "Acquire::Languages=none",
    ):  # fmt: skip
        apt += ["-o", option]
    run([*apt, "update"], work, log)
    run([*apt, "download", PACKAGE], work / "download", log)
    return next((work / "download").glob("*.deb"))


def unpack(package: Path, work: Path, log: Path) -> Path:
    """The source tree of the package, whose version has to be the reference's."""
    done = subprocess.run(["dpkg-deb", "-f", package, "Version"], capture_output=True, text=True, check=False)
    version = done.stdout.strip()
    if not re.match(rf"{re.escape(VERSION)}([-+~]|$)", version):
        raise LinuxBuildError(
            f"{package.name} is version {version or 'unknown'}, the reference is {VERSION}: "
            "set LUEMU_LINUX_DEB to a package of that version"
        )
    run(["dpkg", "-x", package, work / "package"], work, log)
    archive = next((work / "package" / "usr" / "src").glob("linux-source-*.tar.xz"))
    (work / "source").mkdir()
    run(["tar", "-xf", archive, "-C", work / "source", "--strip-components=1"], work, log)
    return work / "source"


def compile_all(config: str, source: Path, work: Path, out: Path, log: Path) -> None:
    """Kernel, `lu` and the self-tests into `out`."""
    shutil.copy(DATA / config, source / ".config")
    make: list[str | Path] = ["make", "-s", "ARCH=x86_64", f"-j{os.cpu_count() or 1}"]
    run([*make, "olddefconfig"], source, log)
    run([*make, "bzImage"], source, log)
    for name in ("arch/x86/boot/bzImage", "vmlinux", "System.map"):
        shutil.copy(source / name, out)
    headers = work / "usr"
    run([*make, "headers_install", f"INSTALL_HDR_PATH={headers}"], source, log)
    static: list[str | Path] = ["gcc", "-static", "-O2", "-s", "-isystem", headers / "include"]
    run([*static, "-w", "-o", out / "lu", DATA / "lu.c"], source, log)
    tests = source / "tools/testing/selftests"
    (out / "selftests").mkdir()
    includes = [f"-I{tests}", f"-I{tests}/liveupdate", f"-I{source}/tools/include"]
    for name in SELFTESTS:
        sources = [tests / "liveupdate" / f"{name}.c", tests / "liveupdate" / "luo_test_utils.c"]
        flags = ["-D_GNU_SOURCE=", "-Wno-unused-function", *includes]
        run([*static, *flags, "-o", out / "selftests" / name, *sources], source, log)
    shutil.copy(tests / "liveupdate" / "do_kexec.sh", out)
    (out / "do_kexec.sh").chmod(0o755)


def keep(out: Path, final: Path) -> None:
    """Copy a complete build to where it stays, which may be another file system, all or nothing."""
    with tempfile.TemporaryDirectory(dir=final.parent, prefix="keeping-") as tmp:
        shutil.copytree(out, Path(tmp) / "build").rename(final)


def ensure(configs: Sequence[str] = (CONFIGS[0],)) -> list[LinuxBuild]:
    """Build what is missing; one source tree serves all. Raises LinuxBuildError."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [c for c in configs if find(c) is None]
        if missing:
            check_needed()
            for left in (*cache().glob("building-*"), *cache().glob("keeping-*")):
                shutil.rmtree(left, ignore_errors=True)  # by a killed build: we have the lock
            # Linux can not be built below a directory whose name has a space or a colon.
            place = None if re.search(r"[\s:]", str(cache().resolve())) else cache()
            with tempfile.TemporaryDirectory(dir=place, prefix="building-") as tmp:
                work = Path(tmp)
                log = work / "log"
                print(f"Fetching {PACKAGE} {VERSION}", flush=True)
                source = unpack(fetch(work, log), work, log)
                for config in missing:
                    print(f"Building Linux {VERSION} with tests/data/{config}: some minutes", flush=True)
                    out = work / config
                    out.mkdir()
                    compile_all(config, source, work, out, log)
                    shutil.copy(log, out / "build.log")
                    keep(out, directory(config))
    return [LinuxBuild(directory(c)) for c in configs]


def main() -> int:
    """Command line: see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.linux.build", description="Build the reference Linux."
    )
    parser.add_argument("--config", choices=CONFIGS, action="append", help="default: both")
    args = parser.parse_args()
    try:
        for built in ensure(args.config or CONFIGS):
            print(built.root)
    except LinuxBuildError as e:
        print(f"linux: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
