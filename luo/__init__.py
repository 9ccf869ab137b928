"""Live Update Orchestrator state (``luo-v5``, Linux 7.2): read, write and check it from the host.

`Luo.read(handover)` decodes what LUO put into a `kho.Handover`. Nothing here knows of the machine.
"""

from luo.state import Luo, payload_bytes

__all__ = ["Luo", "payload_bytes"]
