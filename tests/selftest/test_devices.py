"""Groups of the self-test guest that need more than a plain PC, edu and VT-d: on QEMU and on our machine."""

from __future__ import annotations

import functools
import re

from emu.machine import StopKind
from tests.machine.guest import selftest
from tests.selftest.test_machine import same
from tests.selftest.test_qemu import DEVICES, EXTRA_GROUPS, names, qemu_output

ONLY = f"only={','.join(EXTRA_GROUPS)}"


@functools.cache
def on_qemu() -> str:
    return qemu_output(ONLY, devices=DEVICES)


def ours(*devices: str) -> str:
    with selftest(ONLY, devices=devices) as m:
        stop = m.run(max_instructions=200_000_000)
        output = m.console.decode().replace("\r\n", "\n")
    assert stop.kind is StopKind.POWER_OFF, f"{stop}\n{output[-2000:]}"
    return output


def test_every_test_passes_on_qemu() -> None:
    last = on_qemu().splitlines()[-1]
    found = re.fullmatch(r"selftest: (\d+) tests, 0 failed", last)
    assert found, "\n".join(line for line in on_qemu().splitlines() if not line.endswith(": ok"))
    assert int(found[1]) == len(names(on_qemu())) >= 15
    assert list(dict.fromkeys(name.split("/")[0] for name in names(on_qemu()))) == EXTRA_GROUPS


def test_our_devices_are_as_those_of_qemu() -> None:
    same(ours("vtd", "edu", "e1000"), on_qemu())


def test_without_vtd_its_group_is_silent() -> None:
    assert {name.split("/")[0] for name in names(ours("edu"))} == {"edu"}
    assert {name.split("/")[0] for name in names(ours("e1000"))} == {"e1000"}
    assert names(ours()) == [] and names(ours("vtd")) == []
