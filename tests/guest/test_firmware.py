"""Machines whose ACPI tables are damaged: the kernel says which, does without, and comes up all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.boot import ACPI_ROOM
from emu.machine import Machine, StopKind
from tests.guest.running import MEMORY_MIB, RELEASES, Run, on_luemu

AREA = (MEMORY_MIB << 20) - ACPI_ROOM
NO_POWER_OFF = "power off failed, halted\n"


def damage(*signatures: bytes) -> Callable[[Machine], None]:
    """A change that gives these tables a wrong checksum."""

    def change(m: Machine) -> None:
        area = m.memory.read(AREA, ACPI_ROOM).tobytes()
        for signature in signatures:
            at = next(i for i in range(0, ACPI_ROOM, 64) if area[i : i + 4] == signature)
            m.memory.write(AREA + at + 9, bytes([area[at + 9] ^ 0xFF]), by="test")

    return change


def boot(release: str, *signatures: bytes) -> Run:
    run = on_luemu(release, prepare=damage(*signatures))
    assert "\nluemu: verdict ok\n" in run.text, f"{run.stop}\n{run.text[-1000:]}"
    assert run.text.count("a table has a wrong checksum, ignored") == len(
        [s for s in signatures if s not in (b"XSDT", b"RSDT", b"DSDT")]
    )
    return run


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    "broken, source",
    [
        ([b"HPET"], "ACPI PM timer"),
        ([b"FACP"], "HPET"),
        ([b"FACP", b"HPET"], "timer interrupt"),  # measured against the 8254
        ([b"APIC"], "HPET"),
        ([b"MCFG"], "HPET"),
    ],
    ids=lambda x: "-".join(s.decode() for s in x) if isinstance(x, list) else "",
)
def test_a_broken_table(broken: list[bytes], source: str, release: str) -> None:
    run = boot(release, *broken)
    for signature in (b"FACP", b"APIC", b"HPET", b"MCFG"):
        state = "missing" if signature in broken else "found"
        assert f"ACPI: {signature.decode()} {state}\n" in run.text
    assert f"time: clock source: {source};" in run.text
    if b"FACP" in broken:
        assert run.stop.kind == StopKind.DEADLOCK and run.text.endswith(NO_POWER_OFF)
    else:
        assert run.stop.kind == StopKind.POWER_OFF


def test_no_tables_at_all() -> None:
    run = boot("old", b"XSDT", b"RSDT")
    assert run.text.count("missing") == 4
    assert run.text.endswith(NO_POWER_OFF)


def test_without_a_dsdt_the_sleep_type_is_a_guess() -> None:
    """Type 0, which is QEMU's; our machine's is 7."""
    run = boot("new", b"DSDT")
    assert "no \\_S5_ in the DSDT, power off with sleep type 0" in run.text
    assert run.text.endswith(NO_POWER_OFF)
