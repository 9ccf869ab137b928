"""Errors of the machine: one small tree, each with what happened, where, and what to do about it.

A guest that misbehaves never raises: that is a typed run result (`emu.machine.Stop`).
These errors are for the host side: bad images, bad files, an unusable engine, wrong calls.
"""

from __future__ import annotations


class EmuError(Exception):
    """Base of all errors raised by `emu`.

    ``kind`` is a short stable word for machines (``luemu --json`` prints it), ``where`` names the
    file, address or option concerned, or is empty.
    """

    kind = "error"

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UnsupportedHost(EmuError):
    """The host, or the Unicorn library found on it, cannot run the machine."""

    kind = "unsupported-host"


class ImageError(EmuError):
    """A kernel image, initramfs, symbol file or saved machine is malformed or unusable."""

    kind = "bad-image"


class ConfigError(EmuError):
    """A machine description or option makes no sense."""

    kind = "bad-config"


class AddressError(EmuError):
    """A host access to guest-physical memory is outside RAM."""

    kind = "bad-address"
