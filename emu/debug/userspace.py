"""The initramfs of a run: init and its plan, the programs, and the kernels that are to come."""

from __future__ import annotations

import posixpath

import kernels
from emu.debug.chain import INIT, Chain
from emu.debug.options import Options, split_command
from emu.errors import ConfigError
from emu.files import FILE_BYTES_MAX, read_file
from emu.initproto import Plan
from emu.initramfs import Initramfs


def initramfs(o: Options, chain: Chain) -> bytes:
    """The archive that every kernel of the chain gets. Raises ConfigError, ImageError."""
    files = Initramfs(bytes_max=o.memory if o.incoming is None else FILE_BYTES_MAX)
    if o.initramfs is not None:
        files.add_base(read_file(o.initramfs), str(o.initramfs))
    if chain.init is not None:
        files.add_standard(kernels.binary("init"), chain.init)
    elif o.init is not None:
        files.add_standard(o.init)
        files.add_host_file(o.init, INIT, libraries=o.libraries)
    for host, where in o.files:
        if posixpath.normpath(where).lstrip("/").split("/")[0] in ("init", "luemu", "boot"):
            raise ConfigError("is where luemu's own init, its plan and the kernels are", where)
        files.add_host_file(host, where, libraries=o.libraries)
    for name in o.programs:
        try:
            files.add_file(f"/bin/{name}", kernels.binary(name).read_bytes(), 0o755)
        except OSError as e:
            raise ConfigError(str(e), name) from None
    for path, data in chain.files().items():
        files.add_file(path, data)
    if o.initramfs is not None and not files.entries:
        return read_file(o.initramfs)  # as it is, to the byte
    if chain.init is not None:
        files.write_plan(
            Plan(
                updates=o.updates,
                before=[split_command(c) for c in o.before],
                after=[split_command(c) for c in o.after],
                next=chain.next_kernels(),
                terminal="/dev/ttyS0" if o.interactive else None,
            )
        )
    return files.build()


__all__ = ["initramfs"]
