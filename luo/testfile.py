"""Files of /dev/luo_test in the project's kernels (luo/guest/luo_test.c): a preserved page with a number."""

from __future__ import annotations

from kho.handover import Handover

TEST_COMPATIBLE = "luemu-test-v1"


def read_test_file(handover: Handover, phys: int, owner: int) -> None:
    """Claims the page of the file whose data handle is ``phys``. Findings: INV-12, INV-20."""
    handover.own_page(owner, phys, lost="INV-20", what="the number of a test file")


__all__ = ["TEST_COMPATIBLE", "read_test_file"]
