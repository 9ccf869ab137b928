"""The loaded engine: Unicorn 2.1.4 with our core interposed, verified before it may run anything.

The core must be in the process's global symbol scope before the engine is loaded; only then do its
definitions take the place of the engine's. The engine's structures are reached by offsets that
hold for exactly one build, so nothing is believed: `load` checks the version, every symbol, every
offset (by writing through the public interface and looking where it lands) and then lets a small
guest show that counting, exceptions, MMIO, MSRs, the TLB and stale-code handling work. On any
mismatch it raises `UnsupportedHost` with one line.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from emu.errors import UnsupportedHost

VERSION = (2, 1, 4)
U64 = ctypes.c_uint64
VOIDP = ctypes.c_void_p

# Offsets into the engine's own structures; emu/native/core.h has those that the core uses.
UC_CPU = 0x1B8
UC_TCG = 0x300
UC_NO_EXIT_REQUEST = 0x7F2
CPU_ENV_PTR = 0x128
CPU_HALTED = 0x8198
CPU_EXCEPTION = 0x81A0
CPU_UC = 0x81A8
CPU_TO_ENV = 0x8A50
ENV_FEATURES = 0x1600
TCG_UC = 0x9970
"""the translator's own pointer back"""

UC_ARCH_X86, UC_MODE_64 = 4, 8
UC_CPU_X86_EPYC = 35
UC_PROT_ALL = 7
UC_HOOK_INTR, UC_HOOK_INSN_INVALID, UC_HOOK_BLOCK = 1, 1 << 14, 1 << 3
_CTL_USE_EXITS, _CTL_EXITS, _CTL_CPU_MODEL, _CTL_TCG_BUFFER = 4, 6, 7, 13
JIT_BYTES = 32 << 20
"""Room for translated code. More costs memory and gains nothing (a Linux boot fits 16 MiB)."""

X86_REG = {"rax": 35, "rip": 41, "cr0": 50, "cr2": 52, "cr3": 53, "cr4": 54, "mxcsr": 237, "xmm0": 122}


def _ctl(number: int, args: int) -> int:
    return number | args << 26 | 1 << 30


def _hosted() -> None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise UnsupportedHost(
            "running machines needs Linux on x86-64 (reading dumps with inspect and check works anywhere)"
        )
    if platform.libc_ver()[0] not in ("glibc", ""):
        raise UnsupportedHost("running machines needs a Linux with glibc: the engine's wheel is built for it")


def _engine_path() -> Path:
    """Where the engine's shared library is: LIBUNICORN_PATH, or in the unicorn package."""
    override = os.environ.get("LIBUNICORN_PATH")
    if override:
        folder = Path(override)
    else:
        spec = importlib.util.find_spec("unicorn")
        if spec is None or not spec.submodule_search_locations:
            raise UnsupportedHost("the package unicorn is not installed: pip install unicorn==2.1.4")
        folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    path = folder if folder.is_file() else folder / "libunicorn.so.2"
    if not path.is_file():
        raise UnsupportedHost(f"no libunicorn.so.2 in {folder}: pip install --force-reinstall unicorn==2.1.4")
    # The dynamic linker dies of a file that ends early.
    with path.open("rb") as f:
        head = f.read(64)
    sections, count = int.from_bytes(head[40:48], "little"), int.from_bytes(head[60:62], "little")
    if head[:4] == b"\x7fELF" and path.stat().st_size < sections + 64 * count:
        raise UnsupportedHost("the engine cannot be loaded: its file is truncated")
    return path


def _already_loaded(path: Path) -> bool:
    real = os.path.realpath(path)
    with Path("/proc/self/maps").open() as maps:
        return any(line.rstrip().endswith(real) for line in maps)


class Library:
    """The engine's and the core's functions."""

    def __init__(self, path: Path | None = None) -> None:
        _hosted()
        self.path = path or _engine_path()
        core_path = Path(__file__).parent / "native" / "libluemu_core.so"
        if not core_path.is_file():
            raise UnsupportedHost(f"{core_path.name} was not built: install the project (pip install .)")
        if _already_loaded(self.path):
            raise UnsupportedHost(
                "unicorn was imported before emu; import emu first (it must load its core before the engine)"
            )
        self.core = ctypes.CDLL(str(core_path), mode=ctypes.RTLD_GLOBAL)
        try:
            self.engine = ctypes.CDLL(str(self.path))
        except OSError as e:
            raise UnsupportedHost(f"the engine cannot be loaded: {e}") from None
        self._check_version()
        self.core.core_bind.restype = ctypes.c_char_p
        missing = self.core.core_bind(VOIDP(self.engine._handle))
        if missing:
            raise UnsupportedHost(
                f"the engine has no symbol {missing.decode()}: it is not the unicorn 2.1.4 wheel"
            )
        c = self.core
        c.core_new.restype = VOIDP
        c.core_hook.restype = VOIDP
        c.core_env.restype = VOIDP
        c.core_state_words.restype = U64
        c.core_tlb_save.restype = U64
        c.ram_drain.restype = U64
        c.core_run.argtypes = [VOIDP, U64]
        c.core_run.restype = ctypes.c_int

    def _check_version(self) -> None:
        try:
            version_of = self.engine.uc_version
        except AttributeError:
            raise UnsupportedHost("the engine has no symbol uc_version: it is not unicorn") from None
        major, minor = ctypes.c_uint(), ctypes.c_uint()
        packed = version_of(ctypes.byref(major), ctypes.byref(minor))
        found = (packed >> 24 & 0xFF, packed >> 16 & 0xFF, packed >> 8 & 0xFF)
        if found != VERSION:
            raise UnsupportedHost(
                f"the engine is unicorn {'.'.join(map(str, found))}, this needs exactly 2.1.4: "
                "pip install unicorn==2.1.4"
            )

    def call(self, name: str, *args: object) -> None:
        """Call an engine function that returns a uc_err; raises UnsupportedHost unless it is 0."""
        try:
            function: Callable[..., int] = getattr(self.engine, name)
        except AttributeError:
            raise UnsupportedHost(f"the engine has no symbol {name}") from None
        error = function(*args)
        if error:
            raise UnsupportedHost(f"the engine refused {name}: error {error}")


def peek(address: int, size: int) -> int:
    """Unsigned little-endian integer of ``size`` bytes at a host address."""
    return int.from_bytes(ctypes.string_at(address, size), "little")


def poke(address: int, size: int, value: int) -> None:
    """Write an unsigned little-endian integer to a host address."""
    ctypes.memmove(address, value.to_bytes(size, "little"), size)


class Mapped:
    """Which host addresses may be read: a wrong offset must not crash the check for it."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        with Path("/proc/self/maps").open() as maps:
            for line in maps:
                span, permissions = line.split()[:2]
                if permissions[0] == "r":
                    low, high = span.split("-")
                    self.ranges.append((int(low, 16), int(high, 16)))

    def __contains__(self, address: int) -> bool:
        return any(low <= address and address + 16 <= high for low, high in self.ranges)


class Engine:
    """One Unicorn engine, set up for our core: no `until` address, no exit checks per access."""

    def __init__(self, library: Library) -> None:
        self.library = library
        handle = VOIDP()
        library.call("uc_open", UC_ARCH_X86, UC_MODE_64, ctypes.byref(handle))
        assert handle.value is not None
        self.uc = handle.value
        call = functools.partial(library.call, "uc_ctl", VOIDP(self.uc))
        call(ctypes.c_uint(_ctl(_CTL_CPU_MODEL, 1)), ctypes.c_int(UC_CPU_X86_EPYC))
        call(ctypes.c_uint(_ctl(_CTL_TCG_BUFFER, 1)), ctypes.c_uint32(JIT_BYTES))
        # With an `until` address each return walks the guest's tables at until-1 and leaves a
        # half-delivered page fault behind.
        call(ctypes.c_uint(_ctl(_CTL_USE_EXITS, 1)), ctypes.c_int(1))
        call(ctypes.c_uint(_ctl(_CTL_EXITS, 2)), VOIDP(0), ctypes.c_size_t(0))
        rax = U64(0x1122334455667788)
        library.call("uc_reg_write", VOIDP(self.uc), X86_REG["rax"], ctypes.byref(rax))
        mapped = Mapped()
        self.cpu = peek(self.uc + UC_CPU, 8)
        if self.cpu not in mapped or self.cpu + CPU_TO_ENV not in mapped:
            raise UnsupportedHost(
                f"the engine's CPU is not at offset {UC_CPU:#x}: not the unicorn 2.1.4 wheel"
            )
        if peek(self.cpu + CPU_ENV_PTR, 8) != self.cpu + CPU_TO_ENV or peek(self.cpu + CPU_UC, 8) != self.uc:
            raise UnsupportedHost(
                f"the engine's CPU state is not at offset {CPU_TO_ENV:#x}: not the unicorn 2.1.4 wheel"
            )
        self.env = self.cpu + CPU_TO_ENV
        if peek(self.env, 8) != rax.value:
            raise UnsupportedHost(
                "the engine's registers are not where expected: not the unicorn 2.1.4 wheel"
            )
        self.tcg = peek(self.uc + UC_TCG, 8)
        if self.tcg + TCG_UC not in mapped or peek(self.tcg + TCG_UC, 8) != self.uc:
            raise UnsupportedHost(f"the translator is not at offset {UC_TCG:#x}: not the unicorn 2.1.4 wheel")
        poke(self.uc + UC_NO_EXIT_REQUEST, 1, 1)
        self._hooks: list[ctypes.c_size_t] = []

    def hook(self, kind: int, function: int, user: int) -> None:
        """Add a native callback for all addresses."""
        handle = ctypes.c_size_t()
        self.library.call(
            "uc_hook_add",
            VOIDP(self.uc),
            ctypes.byref(handle),
            ctypes.c_int(kind),
            VOIDP(function),
            VOIDP(user),
            U64(1),
            U64(0),
        )
        self._hooks.append(handle)

    def map_ram(self, phys: int, host: int, size: int) -> None:
        """Map host memory as RAM."""
        self.library.call(
            "uc_mem_map_ptr", VOIDP(self.uc), U64(phys), ctypes.c_size_t(size), UC_PROT_ALL, VOIDP(host)
        )

    def map_mmio(self, phys: int, size: int, read: int, write: int, user: int) -> None:
        """Send accesses to a range to native callbacks."""
        self.library.call(
            "uc_mmio_map",
            VOIDP(self.uc),
            U64(phys),
            ctypes.c_size_t(size),
            VOIDP(read),
            VOIDP(user),
            VOIDP(write),
            VOIDP(user),
        )

    def close(self) -> None:
        """Free the engine."""
        if self.uc:
            self.library.engine.uc_close(VOIDP(self.uc))
            self.uc = 0


_loading = threading.Lock()


def library() -> Library:
    """The verified library, loaded once per process. Raises `UnsupportedHost`."""
    with _loading:  # the threads that make the first machines wait for one of them
        return _load()


@functools.cache
def _load() -> Library:
    lib = Library()
    from emu.selfcheck import verify_apart

    verify_apart(lib)
    return lib


def description() -> str:
    """One line for --version and bug reports."""
    try:
        package = importlib.metadata.version("unicorn")
    except importlib.metadata.PackageNotFoundError:
        package = "?"
    return f"unicorn {package} (GPLv2), core for {'.'.join(map(str, VERSION))}"
