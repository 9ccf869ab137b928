"""Live Update Orchestrator state (``luo-v5``, Linux 7.2): read, write and check it from the host."""
