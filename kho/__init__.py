"""Kexec Handover (``kho-v4``, Linux 7.2): read, write and check it from the host.

`Handover.read(memory)` decodes a handover from anything that can read physical memory (`kho.memory`);
`open_image` makes that from a file. Nothing here knows of the machine or of LUO.
"""

from kho.errors import KhoError
from kho.handover import Handover
from kho.image import open_image

__all__ = ["Handover", "KhoError", "open_image"]
