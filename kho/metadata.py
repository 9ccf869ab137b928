"""The kexec-metadata blob: which kernel wrote the handover, and how many updates there have been."""

from __future__ import annotations

from dataclasses import dataclass

from kho.abi import METADATA, METADATA_VERSION
from kho.errors import FormatError


@dataclass(frozen=True)
class KexecMetadata:
    """The packed 73-byte structure (Linux 7.2 KHO ABI, kexec-metadata), version 1."""

    previous_release: str
    kexec_count: int
    version: int = METADATA_VERSION

    @classmethod
    def unpack(cls, data: bytes) -> KexecMetadata:
        """From the bytes of the blob; FormatError for another version, a short blob, or a name
        without end.
        """
        if len(data) < 4:
            raise FormatError(f"kexec-metadata has only {len(data)} bytes")
        version = int.from_bytes(data[:4], "little")
        if version != METADATA_VERSION:
            raise FormatError(f"kexec-metadata has version {version}, known is {METADATA_VERSION}")
        if len(data) < METADATA.size:
            raise FormatError(f"kexec-metadata has {len(data)} bytes, version 1 needs {METADATA.size}")
        _, release, count = METADATA.unpack_from(data)
        name, nul, _ = release.partition(b"\0")
        if not nul:
            raise FormatError("the release name in kexec-metadata has no end")
        return cls(name.decode("ascii", "backslashreplace"), count, version)

    def pack(self) -> bytes:
        """To 73 bytes."""
        return METADATA.pack(self.version, self.previous_release.encode("ascii")[:64], self.kexec_count)
