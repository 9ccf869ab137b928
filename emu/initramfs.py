"""Build the initramfs: a newc cpio archive that is the same, byte for byte, for the same contents.

Files of the host are taken with their contents only: owner, times and inode numbers never get in. Programs
bring the shared libraries that they need, found as the host's dynamic linker would find them.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import posixpath
import re
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from emu.errors import ConfigError, ImageError
from emu.files import FILE_BYTES_MAX, read_file
from emu.initproto import PLAN_PATH, Plan

HEADER_SIZE = 110  # magic and thirteen fields of eight hex digits
NAME_BYTES_MAX = 4095  # PATH_MAX with its NUL byte
TRAILER = "TRAILER!!!"
LINKS_MAX = 40  # symbolic links followed on the way to a name, as in Linux
_LZMA_BYTES_MAX = 256 << 20
_STEP = 16 << 10
_NEWC = (b"070701", b"070702")
_FIELDS = re.compile(rb"[0-9A-Fa-f]{104}")
_ZEROS = re.compile(rb"\0*")

# What ld.so searches after DT_RUNPATH and /etc/ld.so.conf, in Debian's and in the older layout.
STANDARD_DIRECTORIES = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)


@dataclass(frozen=True)
class Entry:
    """One member of the archive."""

    mode: int  # type and permissions
    data: bytes = b""  # contents, or target of a symbolic link
    device: tuple[int, int] = (0, 0)


def _clean(path: str) -> str:
    """A name as the archive has it: no leading slash, nothing to normalise."""
    name = posixpath.normpath("/" + path).lstrip("/")
    if not name:
        raise ConfigError("is the root directory", path or "(empty path)")
    if ".." in path.split("/"):
        raise ConfigError("goes up with '..'", path)
    raw = _raw(name)
    if b"\0" in raw:
        raise ConfigError("contains a NUL byte", repr(path))
    if len(raw) >= NAME_BYTES_MAX or max(len(p) for p in raw.split(b"/")) > 255:
        raise ConfigError("is too long a path", path[:60] + "…")
    if name == TRAILER:
        raise ConfigError("is the name that ends an archive", path)
    return name


def _raw(name: str) -> bytes:
    """A name's bytes; one that is no UTF-8 came from the host's command line with surrogateescape."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as e:
        raise ConfigError("contains a surrogate that stands for no byte", ascii(name)) from e


def _newc(ino: int, name: bytes, entry: Entry) -> bytes:
    """One member: header of thirteen 8-digit hex fields, name, padding, data, padding."""
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    uid = gid = mtime = device_major = device_minor = check = 0
    fields = (ino, entry.mode, uid, gid, links, mtime, len(entry.data), device_major, device_minor)
    head = b"070701" + b"".join(b"%08X" % v for v in (*fields, *entry.device, len(name) + 1, check))
    head += name + b"\0"
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)


def read_archive(
    archive: bytes, where: str = "initramfs", bytes_max: int = FILE_BYTES_MAX
) -> dict[str, Entry]:
    """Members of an initramfs by name: newc archives one after the other, each plain or compressed.

    Raises ImageError for anything else, and where one unpacks to more than ``bytes_max``. A later member
    replaces an earlier one of the same name, as it does when the kernel unpacks them.
    """
    entries: dict[str, Entry] = {}
    at = _behind_zeros(archive, 0)
    if at == len(archive):
        raise ImageError("is empty", where)
    first = at
    while at < len(archive):
        if archive.startswith(_NEWC, at):
            at = _read_newc(archive, at, entries, where)
        else:
            plain, at = _decompress(archive, at, where, at == first, bytes_max)
            _read_newc(plain, 0, entries, where)
        at = _behind_zeros(archive, at)
    return entries


def _behind_zeros(data: bytes, at: int) -> int:
    found = _ZEROS.match(data, at)
    return found.end() if found is not None else at


def _read_newc(data: bytes, at: int, entries: dict[str, Entry], where: str) -> int:
    """Read from ``at`` up to and with one trailer; the offset behind it."""
    while True:
        at += (_behind_zeros(data, at) - at) & ~3  # archives may follow each other with padding between them
        head = data[at : at + HEADER_SIZE]
        if len(head) < HEADER_SIZE or not head.startswith(_NEWC):
            raise ImageError(f"is no newc cpio archive, or is cut off, at byte {at}", where)
        if not _FIELDS.fullmatch(head, 6):  # int() would also take signs, blanks and underscores
            raise ImageError(f"has a damaged header at byte {at}", where)
        v = [int(head[i : i + 8], 16) for i in range(6, HEADER_SIZE, 8)]
        mode, size, name_size = v[1], v[6], v[11]
        contents = at + HEADER_SIZE + name_size
        contents += -contents % 4
        end = contents + size
        name = data[at + HEADER_SIZE : at + HEADER_SIZE + name_size]
        if end > len(data) or not name.endswith(b"\0"):
            raise ImageError(f"is cut off in the member at byte {at}", where)
        at = end + -end % 4
        text = name[:-1].decode("utf-8", "surrogateescape")
        if text == TRAILER:
            return min(at, len(data))
        text = posixpath.normpath("/" + text).lstrip("/")
        if text:
            entries[text] = Entry(mode, data[contents:end], (v[9], v[10]))


def _decompressor(head: bytes) -> Any:
    """For data that begins like this; None if it is compressed in no known way."""
    if head.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj()
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(memlimit=_LZMA_BYTES_MAX)
    return bz2.BZ2Decompressor() if head.startswith(b"BZh") else None


def _decompress(data: bytes, at: int, where: str, first: bool, bytes_max: int) -> tuple[bytes, int]:
    """One compressed piece, and the offset behind it."""
    head = data[at : at + 8]
    if head.startswith((b"\x02\x21\x4c\x18", b"\x04\x22\x4d\x18", b"\x5d\0\0", b"\x89LZO")):
        raise ImageError("is compressed with LZ4, LZMA or LZO; only gzip, zstd, xz, bzip2 can be read", where)
    decompressor = _decompressor(head)
    if decompressor is None:
        what = "has something else behind its archive"
        if first:
            what = "is no newc cpio archive, nor one compressed"
        raise ImageError(what, where)
    out = bytearray()
    view = memoryview(data)
    try:
        while not decompressor.eof:
            piece = view[at : at + _STEP]  # a few bytes may unpack to very many
            if not piece:
                raise ImageError("is cut off: its compressed data has no end", where)
            out += decompressor.decompress(piece)
            at += len(piece)
            if len(out) > bytes_max:
                raise ImageError(f"unpacks to more than {bytes_max:,} bytes", where)
    except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError, ValueError) as e:
        raise ImageError(f"is damaged: {e}", where) from e
    return bytes(out), at - len(decompressor.unused_data)


@dataclass
class Initramfs:
    """An archive in the making. Paths are those inside the machine; parents are made as needed.

    Base archives come first, unchanged; what is added here lies over them and follows their symbolic links,
    such as /bin → usr/bin, instead of replacing them.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    base: list[bytes] = field(default_factory=list)
    bytes_max: int = FILE_BYTES_MAX  # of a host file or an unpacked base archive: what the machine can hold
    _below: dict[str, Entry] = field(default_factory=dict, repr=False)  # members of the base archives

    # --- contents ---

    def add_base(self, archive: bytes, where: str = "initramfs") -> None:
        """Put a whole archive (newc, plain or compressed) under what is added here; call this first."""
        if self.entries:
            raise ConfigError("base archives come before everything else", where)
        self._below.update(read_archive(archive, where, self.bytes_max))
        self.base.append(archive + bytes(-len(archive) % 4))

    def add_dir(self, path: str, mode: int = 0o755) -> None:
        """Add a directory and its parents."""
        name = self._place(path, follow=True)
        old = self._entry(name)
        if old is not None and not stat.S_ISDIR(old.mode):
            raise ConfigError("is already there and is no directory", f"/{name}")
        self.entries[name] = Entry(stat.S_IFDIR | mode)

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError("files of 4 GiB and more do not fit in an initramfs", path)
        self._add(path, Entry(stat.S_IFREG | mode, data))

    def add_symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        raw = _raw(target)
        if not raw or b"\0" in raw or len(raw) >= NAME_BYTES_MAX:
            raise ConfigError("has an impossible target", path)
        self._add(path, Entry(stat.S_IFLNK | 0o777, raw))

    def add_device(self, path: str, major: int, minor: int, *, block: bool = False) -> None:
        """Add a device node that root alone may use."""
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise ConfigError(f"device numbers {major},{minor} do not exist", path)
        self._add(path, Entry((stat.S_IFBLK if block else stat.S_IFCHR) | 0o600, b"", (major, minor)))

    def add_host_file(self, host: Path, path: str, *, libraries: bool = True) -> None:
        """Add a file of the host, with the libraries it needs if it is a dynamic program.

        Raises ConfigError if the host has no such file, ImageError if a library is missing.
        """
        data = _read(host, self.bytes_max)
        self.add_file(path, data, 0o755 if host.stat().st_mode & 0o111 else 0o644)
        if not libraries:
            return
        for name, contents in needed_libraries(host, data).items():
            self.add_file(name, contents, 0o755)

    def add_standard(self, init: Path, where: str = "/init") -> None:
        """Add what every initramfs here has: init, the console that the kernel opens, mount points."""
        for path in ("/dev", "/proc", "/sys", "/bin", "/sbin", "/luemu"):
            if self._entry(self._place(path, follow=True)) is None:
                self.add_dir(path)
        self.add_dir("/tmp", 0o1777)
        self.add_device("/dev/console", 5, 1)
        self.add_file(where, _read(init), 0o755)

    def write_plan(self, plan: Plan) -> None:
        """Add the orders for init."""
        self.add_file(PLAN_PATH, plan.encode())

    # --- the archive ---

    def build(self, compress: str | None = None) -> bytes:
        """Return the archive; `compress` is None or "gzip"."""
        if compress not in (None, "gzip"):
            raise ConfigError(f"can not compress with {compress!r}, only with gzip", "initramfs")
        parts = []
        for ino, name in enumerate(sorted(self.entries), 1):  # sorted: a directory before what is in it
            parts.append(_newc(ino, _raw(name), self.entries[name]))
        parts.append(_newc(0, TRAILER.encode(), Entry(0)))
        archive = b"".join(parts)
        if compress == "gzip":
            archive = gzip.compress(archive, 6, mtime=0)
        return b"".join(self.base) + archive

    def _entry(self, name: str) -> Entry | None:
        return self.entries.get(name) or self._below.get(name)

    def _add(self, path: str, entry: Entry) -> None:
        name = self._place(path)
        old = self._entry(name)
        if old is not None and stat.S_ISDIR(old.mode):
            raise ConfigError("is already there and is a directory", f"/{name}")
        self.entries[name] = entry

    def _place(self, path: str, *, follow: bool = False) -> str:
        """The name under which `path` has to be stored, symbolic links on the way followed, parents made.

        With `follow`, a symbolic link at the end is followed too.
        """
        todo = _clean(path).split("/")
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            name = "/".join([*done, part])
            entry = self._entry(name)
            if entry is not None and stat.S_ISLNK(entry.mode) and (todo or follow):
                links += 1
                if links > LINKS_MAX:
                    raise ConfigError("is behind too many symbolic links", path)
                target = entry.data.decode("utf-8", "surrogateescape")
                if target.startswith("/"):
                    done = []
                todo = target.split("/") + todo
                continue
            if todo:
                if entry is None:
                    self.entries[name] = Entry(stat.S_IFDIR | 0o755)
                elif not stat.S_ISDIR(entry.mode):
                    raise ConfigError(f"lies below /{name}, which is no directory", path)
            done.append(part)
        return _clean("/".join(done))


def _read(path: Path, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    try:
        return read_file(path, min(bytes_max, FILE_BYTES_MAX))
    except ImageError as e:
        raise ConfigError(e.message, e.where) from e


# --- libraries of dynamic programs ---


@dataclass(frozen=True)
class _Dynamic:
    """What the dynamic linker reads from one ELF file."""

    interpreter: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


def _dynamic(data: bytes, where: str) -> _Dynamic | None:
    """Read it, or None for what is no dynamic x86-64 ELF file."""
    if data[:4] != b"\x7fELF":
        return None
    interpreter: str | None = None
    names: dict[str, list[str]] = {"DT_NEEDED": [], "DT_RPATH": [], "DT_RUNPATH": []}
    dynamic = False
    try:
        elf = ELFFile(io.BytesIO(data))
        if elf.elfclass != 64 or elf.header["e_machine"] != "EM_X86_64":
            raise ImageError("is a program for another processor, not for x86-64", where)
        for segment in elf.iter_segments():
            if segment.header["p_type"] == "PT_INTERP":
                begin, size = segment.header["p_offset"], segment.header["p_filesz"]
                interpreter = data[begin : begin + size].partition(b"\0")[0].decode()
            if isinstance(segment, DynamicSegment):
                dynamic = True
                for tag in segment.iter_tags():
                    kind = str(tag.entry.d_tag)
                    if kind in names:  # the tag's text is an attribute named after it
                        names[kind].append(str(getattr(tag, kind[3:].lower())))
    except ImageError:
        raise
    except Exception as e:  # pyelftools answers damage with many kinds: ELFError, struct, Unicode, Key, …
        raise ImageError(f"is a damaged ELF file: {type(e).__name__}: {e}", where) from e
    needed = names["DT_NEEDED"]
    rpath, runpath = (":".join(names[k]).split(":") if names[k] else [] for k in ("DT_RPATH", "DT_RUNPATH"))
    if interpreter is None and not dynamic:
        return None
    # DT_RPATH is ignored where DT_RUNPATH is present (ELF gABI, "Dynamic Linking").
    return _Dynamic(interpreter, tuple(needed), () if runpath else tuple(rpath), tuple(runpath))


def _conf_directories(conf: Path, depth: int = 0) -> list[str]:
    """Directories of /etc/ld.so.conf, its includes followed in the order of their names."""
    found: list[str] = []
    try:
        lines = conf.read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        words = line.split("#")[0].split()
        if len(words) == 2 and words[0] == "include" and depth < 8:
            pattern = words[1] if words[1].startswith("/") else str(conf.parent / words[1])
            for included in sorted(Path("/").glob(pattern.lstrip("/"))):
                found += _conf_directories(included, depth + 1)
        elif words and words[0].startswith("/"):
            found.append(words[0])
    return found


def search_directories(conf: Path = Path("/etc/ld.so.conf")) -> list[str]:
    """Where the host's dynamic linker looks for every program."""
    return list(dict.fromkeys([*_conf_directories(conf), *STANDARD_DIRECTORIES]))


def _expand(directories: Iterable[str], origin: Path) -> list[str]:
    names = {"ORIGIN": str(origin), "LIB": "lib/x86_64-linux-gnu", "PLATFORM": "x86_64"}
    out = []
    for d in directories:
        for key, value in names.items():
            d = d.replace("${" + key + "}", value).replace("$" + key, value)
        if d.startswith("/"):
            out.append(d)
    return out


def needed_libraries(program: Path, data: bytes | None = None) -> dict[str, bytes]:
    """Contents of every library that `program` needs, its dynamic linker included, by path in the machine.

    Found as ld.so(8) finds them, all are placed in the directory of the C library: the machine's linker looks
    there without a configuration or a cache. Empty for a static program or what is no ELF file. Raises
    ImageError naming the library and who needs it.
    """
    data = _read(program) if data is None else data
    top = _dynamic(data, str(program))
    found: dict[str, bytes] = {}
    if top is None:
        return found
    seen: set[str] = set()
    if top.interpreter is not None:
        interpreter = Path(top.interpreter)
        if not interpreter.is_file():
            raise ImageError(f"needs the dynamic linker {interpreter}, which is missing", str(program))
        found[top.interpreter] = _read(interpreter)
        seen.add(interpreter.name)
    everywhere = search_directories()
    libc = _find("libc.so.6", STANDARD_DIRECTORIES)
    system = str(libc.parent) if libc is not None else STANDARD_DIRECTORIES[0]
    queue: list[tuple[Path, _Dynamic, tuple[str, ...]]] = [(program, top, ())]
    while queue:
        user, dynamic, inherited = queue.pop(0)
        origin = user.resolve().parent
        # DT_RPATH also serves the libraries of a library, DT_RUNPATH only the file that has it.
        rpath: tuple[str, ...] = (*_expand(dynamic.rpath, origin), *inherited)
        directories = [*rpath, *_expand(dynamic.runpath, origin), *everywhere]
        for name in dynamic.needed:
            if name in seen:
                continue
            seen.add(name)
            path = _find(name, directories)
            if path is None:
                places = ", ".join(directories) + " (--no-libs leaves libraries out)"
                raise ImageError(f"needs the library {name}, which is in none of {places}", str(user))
            contents = _read(path)
            found[name if "/" in name else f"{system}/{name}"] = contents
            inner = _dynamic(contents, str(path))
            if inner is not None:
                queue.append((path, inner, rpath))
    return found


def _find(name: str, directories: Iterable[str]) -> Path | None:
    if "/" in name:
        return Path(name) if Path(name).is_file() else None
    return next((p for d in directories if (p := Path(d) / name).is_file() and _is_x86_64(p)), None)


def _is_x86_64(path: Path) -> bool:
    """ld.so passes over a library for another processor, such as a 32-bit one in /lib."""
    with path.open("rb") as f:
        head = f.read(20)
    return head[:5] == b"\x7fELF\x02" and head[18:20] == b"\x3e\0"
