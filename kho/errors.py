"""Errors of the handover decoder: one small tree, each with what happened and where.

Malformed input never raises anything else. What is wrong with a handover but does not stop the decoder is not
an error: it is listed as a finding (`kho.findings`).
"""

from __future__ import annotations


class KhoError(Exception):
    """Base of all errors raised by `kho` and `luo`.

    ``kind`` is a short stable word for machines (``--json`` prints it), ``where`` names the address, file or
    option concerned (or is empty), ``invariant`` the numbered invariant that the input breaks, if it is one.
    """

    kind = "error"

    def __init__(
        self, message: str, where: str = "", *, invariant: str | None = None, phys: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.invariant = invariant
        self.phys = phys

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class FormatError(KhoError):
    """Bytes are not what the format says they must be."""

    kind = "bad-format"


class OutOfRange(KhoError):
    """An address is not in the RAM of the image."""

    kind = "out-of-range"


class NotFound(KhoError):
    """The image has no handover, or none that could be told from what is there."""

    kind = "not-found"


class Ambiguous(KhoError):
    """The image has several handovers and nothing says which is meant."""

    kind = "ambiguous"


class LimitExceeded(KhoError):
    """The input is larger than the documented maximum, or the writer has no room."""

    kind = "limit"


class ImageError(KhoError):
    """A file cannot be read as an image of memory."""

    kind = "bad-image"
