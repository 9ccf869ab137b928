"""/dev/iommu by itself and over updates: objects, mappings, errors; what is refused and why; damage.

Programs are orders for the agent. Functions are the educational device's; what it reaches is looked at in the
unit's own tables by the host's decoder, which shares no code with the kernel.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from random import Random

import pytest

from emu.debug import inspect_devices
from emu.debug.inspect_describe import describe
from emu.debug.output import Branch
from emu.devices.edu import Edu
from emu.machine import Machine
from kho.handover import Handover
from luo.abi_devices import IOMMUFD, READ, WRITE, checksum
from luo.check import check
from luo.iommu import Iommu, Iommufd
from luo.state import Luo
from tests.linux.build import CONFIGS, required
from tests.userspace import iommufd as i
from tests.userspace import rig
from tests.userspace.agents import (
    BUSY,
    EXIST,
    FAULT,
    INVAL,
    IO,
    MIB,
    NOENT,
    NOMEM,
    NOSPC,
    PROGRAMS,
    answers,
    command,
    spec,
)
from tests.userspace.iommufd import FIXED, PRIVATE, READABLE, SHARED, WRITEABLE

BADF, NOTTY, BIG, OVERFLOW, OPNOTSUPP, MSGSIZE, PERM, ADDRINUSE = -9, -25, -7, -75, -95, -90, -1, -98
AT = 0x1000_0000_0000
IOVA = 0x4000_0000
PAGE = 4096
DEVICES = ("vtd", "edu")
VFIO = "vfio-pci.ids=1234:11e8"
Step = tuple[str, int]


def steps_spec(old: list[Step], new: list[Step] | None = None, **more: object) -> rig.Spec:
    options: dict[str, object] = {"devices": DEVICES, "memory": 256 << 20, "cmdline": VFIO} | more
    kernels = options.pop("kernels", ("old", "new") if new is not None else ("old",))
    return spec(kernels, [s for s, _ in old], [s for s, _ in new or []], **options)  # type: ignore[arg-type]


def compare(outcome: rig.Outcome, when: str, steps: list[Step]) -> list[str]:
    """Every order answered what it should; the answers."""
    said = answers(outcome, when)
    assert [o for o, _ in said] == [o for o, _ in steps], outcome.console[-2000:]
    for (order, answer), (_, right) in zip(said, steps, strict=True):
        assert int(answer.split()[0]) == right, f"{order}: {answer} instead of {right}"
    return [answer for _, answer in said]


def run_alone(steps: list[Step], **more: object) -> list[str]:
    """A kernel and no update."""
    with rig.Rig(steps_spec(steps, None, **more)) as r:
        outcome = r.finish().check()
        return compare(outcome, "before", steps)


Alone = Callable[..., list[str]]


@pytest.fixture(params=["ours", pytest.param("linux", marks=pytest.mark.linux)])
def alone(request: pytest.FixtureRequest) -> Alone:
    """`run_alone` on our kernel and on Linux: both have to give the answers that a test knows."""
    if request.param == "ours":
        return run_alone
    kernel = required(CONFIGS[1]).bzimage
    cmdline = f"intel_iommu=on iommu.strict=1 {VFIO}"
    return functools.partial(run_alone, kernels=(kernel,), memory=512 << 20, cmdline=cmdline)


def memory(slot: int = 1, size: int = 4 * MIB, address: int = AT) -> list[Step]:
    return [(f"memfd {slot} 2", 0), (f"truncate {slot} {size}", 0), (i.mmap(slot, size, address), 0)]


OPENED = [("file 2 /dev/iommu", 0), (i.ioas_alloc(2), 0)]
ATTACHED = [("file 3 /dev/vfio/devices/vfio0", 0), (i.bind(3, 2), 0), (i.attach(3, 1), 0)]
WORKING = [*memory(), *OPENED, (i.ioas_map(2, 1, AT, 4 * MIB, IOVA), 0), *ATTACHED]
PRESERVE = [("preserve 0 1 10", 0), ("preserve 0 2 20", 0), ("preserve 0 3 30", 0)]
MASTER_ON = [(f"poke 3 {(7 << 40) + 4:#x} 6", 4)]
"""COMMAND in configuration space: memory and bus master."""
HANDED = [("open", 0), ("create 0 s", 0), *WORKING, *MASTER_ON, *PRESERVE]
RETRIEVED = [("open", 0), ("retrieve 0 s", 0), ("get 1 0 10", 0), ("get 2 0 20", 0), ("get 3 0 30", 0)]


# --- without an update --------------------------------------------------------------------------------------


def test_ids_are_the_lowest_that_are_free(alone: Alone) -> None:
    steps = [
        *OPENED, (i.ioas_alloc(2), 0), (i.ioas_alloc(2), 0), (i.destroy(2, 2), 0), (i.ioas_alloc(2), 0),
        (i.destroy(2, 9), NOENT), (i.destroy(2, 0), NOENT),
    ]  # fmt: skip
    said = alone(steps)
    assert [i.words(said[n])[2] for n in (1, 2, 3, 5)] == [1, 2, 3, 2]


def test_structures_have_a_size(alone: Alone) -> None:
    unmap = [i.ioctl(2, i.IOAS_UNMAP, "IQQ", 1, IOVA, PAGE, size=size) for size in (0, 20, 23)]
    alone([
        *OPENED,
        *[(order, INVAL) for order in unmap],
        (i.ioctl(2, i.IOAS_UNMAP, "IQQ", 1, IOVA, PAGE, more=bytes(8)), NOENT),
        (i.ioctl(2, i.IOAS_UNMAP, "IQQ", 1, IOVA, PAGE, more=b"\1" + bytes(7)), BIG),
        (i.ioctl(2, i.IOAS_ALLOC, "II", 1, 0), OPNOTSUPP),
        (i.ioctl(2, 0x3B95, "II", 0, 0), NOTTY),
        (i.ioctl(2, 0x3B7F, "II", 0, 0), NOTTY),
    ])  # fmt: skip


def test_what_can_not_be_mapped(alone: Alone) -> None:
    def tried(
        error: int, *, flags: int = 7, ioas: int = 1, va: int = AT, size: int = PAGE, at: int = IOVA
    ) -> Step:
        return i.ioas_map(2, ioas, va, size, at, flags), error

    alone([
        *memory(), *OPENED, *ATTACHED,
        (i.mmap(-1, PAGE, AT + 64 * MIB, prot=1, flags=PRIVATE), 0),
        tried(0),
        tried(EXIST), tried(EXIST, at=IOVA - PAGE, size=2 * PAGE),
        tried(EXIST, va=AT + 1), tried(INVAL, va=AT + 1, at=2 * IOVA), tried(INVAL, size=100),
        tried(INVAL, size=0),
        tried(INVAL, at=IOVA + 8 * PAGE + 1),
        tried(INVAL, flags=FIXED), tried(OPNOTSUPP, flags=0xF), tried(NOENT, ioas=2),
        tried(OVERFLOW, at=(1 << 64) - 1), tried(OVERFLOW, size=(1 << 64) - 1),
        tried(OVERFLOW, at=(1 << 64) - PAGE, size=2 * PAGE),
        tried(OVERFLOW, va=(1 << 64) - PAGE, size=2 * PAGE),
        tried(FAULT, va=AT + 32 * MIB, at=2 * IOVA), tried(FAULT, va=AT + 3 * MIB, size=2 * MIB, at=2 * IOVA),
        tried(FAULT, va=AT + 64 * MIB, at=2 * IOVA),
        tried(0, va=AT + 64 * MIB, at=2 * IOVA, flags=FIXED | READABLE),
        tried(FAULT, va=(1 << 64) - 2 * PAGE, at=3 * IOVA),
        # nothing of what failed is left
        (i.ioas_unmap(2, 1, 2 * IOVA, PAGE), 0), (i.ioas_unmap(2, 1, IOVA, PAGE), 0),
        (i.ioas_unmap(2, 1, 0, (1 << 64) - 1), 0),
    ])  # fmt: skip


def test_areas_go_as_a_whole(alone: Alone) -> None:
    said = alone([
        *memory(), *OPENED,
        (i.ioas_map(2, 1, AT, 4 * PAGE, IOVA), 0), (i.ioas_map(2, 1, AT, 4 * PAGE, IOVA + 4 * PAGE), 0),
        (i.ioas_unmap(2, 1, IOVA + PAGE, PAGE), NOENT), (i.ioas_unmap(2, 1, IOVA, 6 * PAGE), NOENT),
        (i.ioas_unmap(2, 1, IOVA, 0), INVAL), (i.ioas_unmap(2, 1, IOVA + 4 * PAGE, 4 * PAGE), 0),
        (i.ioas_unmap(2, 1, IOVA + 4 * PAGE, 4 * PAGE), NOENT),
        (i.ioas_map(2, 1, AT, MIB, IOVA + MIB), 0), (i.ioas_map(2, 1, AT, MIB, IOVA + 2 * MIB), 0),
        (i.ioas_unmap(2, 1, IOVA + MIB, 8 * MIB), 0),
    ])  # fmt: skip
    assert i.quads(said[-1], 16) == (2 * MIB,)


def test_addresses_are_chosen_so_that_large_pages_fit(alone: Alone) -> None:
    chosen = 6
    said = alone([
        *memory(), *OPENED, (i.ioctl(2, i.OPTION, "IHHIQ", 1, 1, 0, 1, 0), 0),
        (i.ioas_map(2, 1, AT, 4 * MIB, 0, WRITEABLE | READABLE), 0),
        (i.ioas_map(2, 1, AT + PAGE, PAGE, 0, READABLE), 0),
        (i.ioas_map(2, 1, AT, 4 * MIB, 0, READABLE), 0),
    ])  # fmt: skip
    assert i.quads(said[chosen - 1], 16) == (1,), "huge pages are on from the start"
    first, second, third = (i.quads(said[n], 32)[0] for n in (chosen, chosen + 1, chosen + 2))
    assert first % (2 * MIB) == 0 and third % (2 * MIB) == 0
    assert len({first, second, third}) == 3 and 0 not in (first, second, third)


def test_ranges_shrink_when_hardware_comes_in(alone: Alone) -> None:
    def ranges(room: int) -> str:
        return i.ioctl(2, i.IOVA_RANGES, "IIIQQ", 1, room, 0, AT, 0)

    read = [(f"load32 {AT + n:#x}", 0) for n in (8, 12, 16, 20)]
    said = alone([
        *memory(), *OPENED, (ranges(0), MSGSIZE), (ranges(1), 0), *read, *ATTACHED, (ranges(1), MSGSIZE),
        (ranges(2), 0), *read,
        (i.ioas_map(2, 1, AT, PAGE, 0xFEE0_0000), INVAL), (i.ioas_map(2, 1, AT, PAGE, 1 << 50), INVAL),
        (i.ioas_map(2, 1, AT, PAGE, 0xFEF0_0000), 0),
    ])  # fmt: skip
    assert i.words(said[6])[2] == 1 and i.words(said[15])[2] == 2
    assert said[7].split()[1] == "0xffffffff" and said[8].split()[1] == "0xffffffff"
    assert [s.split()[1] for s in said[16:20]] == ["0xfedfffff", "0x0", "0xfef00000", "0x0"]


def test_an_address_space_that_hardware_can_not_have(alone: Alone) -> None:
    alone([
        *memory(), *OPENED, (i.ioas_map(2, 1, AT, PAGE, 0xFEE0_0000), 0), *ATTACHED[:2],
        (i.attach(3, 1), ADDRINUSE),
        (i.ioas_unmap(2, 1, 0xFEE0_0000, PAGE), 0), (i.attach(3, 1), 0),
    ])  # fmt: skip


def test_allowed_ranges_limit_the_choice(alone: Alone) -> None:
    def allow(count: int, reserved: int = 0) -> str:
        return i.ioctl(2, i.ALLOW_IOVAS, "IIIQ", 1, count, reserved, AT)

    def put(offset: int, value: int) -> list[Step]:
        low, high = value & 0xFFFFFFFF, value >> 32
        return [(f"store32 {AT + offset:#x} {low:#x}", 0), (f"store32 {AT + offset + 4:#x} {high:#x}", 0)]

    said = alone([
        *memory(), *OPENED,
        *put(0, 5 * MIB), *put(8, 6 * MIB - 1), *put(16, 5 * MIB), *put(24, 7 * MIB),
        (allow(2), INVAL), (allow(1, 1), OPNOTSUPP), (allow(1), 0),
        (i.ioas_map(2, 1, AT, MIB, 0, READABLE), 0), (i.ioas_map(2, 1, AT, PAGE, 0, READABLE), NOSPC),
        (i.ioas_map(2, 1, AT, PAGE, IOVA), 0), (allow(0), 0), (i.ioas_map(2, 1, AT, PAGE, 0, READABLE), 0),
    ])  # fmt: skip
    assert i.quads(said[16], 32) == (5 * MIB,)


def test_copies_share_memory(alone: Alone) -> None:
    alone([
        *memory(), *OPENED, (i.ioas_alloc(2), 0),
        (i.ioas_map(2, 1, AT, 4 * PAGE, IOVA, FIXED | READABLE), 0),
        (i.ioas_map(2, 1, AT + 8 * PAGE, 4 * PAGE, IOVA + 4 * PAGE), 0),
        (i.ioas_copy(2, 2, 1, 8 * PAGE, IOVA, IOVA), PERM),
        (i.ioas_copy(2, 2, 1, 8 * PAGE, IOVA, IOVA, FIXED | READABLE), 0),
        (i.ioas_copy(2, 2, 1, 8 * PAGE, IOVA, IOVA, FIXED | READABLE), EXIST),
        (i.ioas_copy(2, 2, 1, PAGE, IOVA * 2, IOVA * 3), NOENT),
        (i.ioas_copy(2, 2, 1, 9 * PAGE, IOVA * 2, IOVA, FIXED | READABLE), NOENT),
        (i.ioas_copy(2, 2, 1, PAGE, IOVA * 2, IOVA + 5 * PAGE), 0),
        (i.ioas_unmap(2, 1, 0, (1 << 64) - 1), 0), (i.ioas_unmap(2, 2, IOVA, 8 * PAGE), 0),
        (i.destroy(2, 2), 0), (i.destroy(2, 1), 0),
    ])  # fmt: skip


def test_objects_that_are_needed_stay(alone: Alone) -> None:
    said = alone([
        *WORKING,
        (i.destroy(2, 1), BUSY), (i.destroy(2, 2), BUSY), (i.destroy(2, 3), BUSY),
        (i.hwpt_alloc(2, 2, 1), 0), (i.hwpt_alloc(2, 1, 1), NOENT), (i.hwpt_alloc(2, 2, 7), INVAL),
        (i.hwpt_alloc(2, 2, 2), INVAL), (i.hwpt_alloc(2, 2, 3), OPNOTSUPP),
        (i.attach(3, 4), 0), (i.destroy(2, 3), NOENT),
        (i.destroy(2, 4), BUSY),
        (i.attach(3, 2), INVAL), (i.attach(3, 77), NOENT), (i.detach(3), 0), (i.destroy(2, 4), 0),
        (i.destroy(2, 1), 0),
    ])  # fmt: skip
    assert i.words(said[12])[4] == 4, "the new HWPT's id"


def test_options(alone: Alone) -> None:
    def option(id: int, op: int, object: int, value: int, reserved: int = 0) -> str:
        return i.ioctl(2, i.OPTION, "IHHIQ", id, op, reserved, object, value)

    alone([
        ("file 2 /dev/iommu", 0), (option(0, 0, 0, 1), 0), (option(0, 1, 0, 0), 0),
        (option(0, 0, 0, 2), INVAL),
        (option(0, 0, 1, 1), OPNOTSUPP), (option(0, 2, 0, 1), OPNOTSUPP), (option(9, 1, 0, 0), OPNOTSUPP),
        (option(0, 1, 0, 0, 1), OPNOTSUPP), (option(1, 1, 1, 0), NOENT), (i.ioas_alloc(2), 0),
        (option(0, 0, 0, 0), BUSY), (option(1, 0, 1, 0), 0), (option(1, 0, 1, 2), INVAL),
    ])  # fmt: skip


def test_the_limit_of_locked_memory(alone: Alone) -> None:
    alone([
        *memory(), *OPENED, *ATTACHED, ("memlock 16384", 0), (i.ioas_map(2, 1, AT, 8 * PAGE, IOVA), 0),
        ("setuid 1000", 0),
        (i.ioas_map(2, 1, AT, 5 * PAGE, 2 * IOVA), NOMEM), (i.ioas_map(2, 1, AT, 4 * PAGE, 2 * IOVA), 0),
        (i.ioas_map(2, 1, AT, PAGE, 3 * IOVA), NOMEM), (i.ioas_unmap(2, 1, 2 * IOVA, 4 * PAGE), 0),
        (i.ioas_map(2, 1, AT, PAGE, 3 * IOVA), 0),
    ])  # fmt: skip


def test_without_a_unit_there_is_no_device_file() -> None:
    run_alone([("file 2 /dev/iommu", NOENT)], devices=("edu",))


# --- over an update -----------------------------------------------------------------------------------------


def at_jump(r: rig.Rig, generation: int = 0) -> tuple[Handover, Iommu, list[Iommufd]]:
    """What is handed over; it breaks no invariant."""
    r.run_to(generation, "kexec:jump")
    handover = r.handover(generation)
    assert check(handover, "J").violations == []
    luo = Luo.read(handover)
    assert luo is not None and luo.iommu is not None
    files = [file.iommufd for session in luo.sessions for file in session.files if file.iommufd]
    return handover, luo.iommu, files


@pytest.mark.parametrize("kernels", [("old", "new"), ("new", "old")], ids="-".join)
def test_everything_is_as_it_was(kernels: tuple[str, str]) -> None:
    new = [
        *RETRIEVED, (i.ioas_alloc(2), BUSY), (i.ioas_unmap(2, 1, IOVA, 4 * MIB), BUSY),
        (i.destroy(2, 1), BUSY),
        (i.bind(3, 2), 0), (i.attach(3, 1), 0), (i.attach(3, 3), 0), ("finish 0", 0),
        (i.ioas_alloc(2), 0), (i.destroy(2, 3), BUSY), (i.ioas_map(2, 1, AT, PAGE, 2 * IOVA), FAULT),
        (i.mmap(1, 4 * MIB, AT), 0), (i.ioas_map(2, 1, AT, PAGE, IOVA), EXIST),
        (i.ioas_map(2, 1, AT, PAGE, 2 * IOVA), 0), (i.ioas_unmap(2, 1, IOVA, 4 * MIB), 0), (i.detach(3), 0),
        (i.destroy(2, 3), NOENT), (i.ioas_map(2, 1, AT, MIB, IOVA), 0),
    ]  # fmt: skip
    with rig.Rig(
        spec(
            kernels,
            [s for s, _ in HANDED],
            [s for s, _ in new],
            cmdline=VFIO,
            devices=DEVICES,
            memory=256 << 20,
        )
    ) as r:
        _, iommu, files = at_jump(r)
        assert iommu.devices == {3 << 3: 1} and len(files) == 1
        assert sum(m.size for m in iommu.domains[1].mappings) == 4 * MIB
        assert all(m.prot == READ | WRITE for m in iommu.domains[1].mappings)
        outcome = r.finish().check()
        compare(outcome, "before", HANDED)
        compare(outcome, "after", new)
        assert outcome.log("as the previous kernel left it")
        assert not outcome.log("refused") and not outcome.log("stay reserved")


def test_a_chain_of_updates() -> None:
    """Each kernel hands over what it was handed, without touching it."""
    again = [*RETRIEVED, ("finish 0", 0), ("create 0 s", 0), *PRESERVE, ("hold", 0)]
    old, new = [s for s, _ in HANDED], [s for s, _ in again]

    run = rig.Spec(
        ("old", "new", "old"),
        before=[command([*old, "hold"], 0)],
        after=[command(new, 1), command([*(s for s, _ in RETRIEVED), "finish 0"], 2)],
        cmdline=f"{rig.SCRATCH} {VFIO}", programs=PROGRAMS, devices=DEVICES, memory=256 << 20,
    )  # fmt: skip
    with rig.Rig(run) as r:
        _, first, _ = at_jump(r, 0)
        _, second, _ = at_jump(r, 1)
        assert first.domains == second.domains and first.root == second.root
        outcome = r.finish().check()
        assert len(outcome.log("as the previous kernel left it")) == 2


def refused(setup: list[Step], why: str) -> None:
    steps = [("open", 0), ("create 0 s", 0), *setup]
    with rig.Rig(steps_spec(steps)) as r:
        outcome = r.finish().check()
        compare(outcome, "before", steps)
        assert outcome.log(why), outcome.console[-1500:]


def test_memory_that_no_file_hands_over_is_refused() -> None:
    refused(
        [*WORKING, ("preserve 0 2 20", INVAL), (i.ioas_alloc(2), 0)],
        "is not handed over by a file of its own",
    )


def test_private_memory_is_refused() -> None:
    private = [
        (i.mmap(-1, PAGE, AT + 64 * MIB, flags=PRIVATE), 0),
        (i.ioas_map(2, 1, AT + 64 * MIB, PAGE, 1 << 32), 0),
    ]
    refused([*WORKING, *private, ("preserve 0 1 10", 0), ("preserve 0 2 20", INVAL)], "IOVA 0x100000000")


def test_a_memfd_that_is_unpreserved_stops_the_update() -> None:
    """The memfd is another session's, which is closed."""
    steps = [
        ("open", 0), ("create 0 s", 0), ("create 5 t", 0), *WORKING, ("preserve 5 1 10", 0),
        ("preserve 0 2 20", 0),
        ("preserve 0 3 30", 0), ("close 5", 0), ("load /luemu/kernel1", 0), ("reboot", INVAL),
        (i.ioas_map(2, 1, AT, PAGE, 1 << 32), BUSY), ("close 0", 0), (i.ioas_map(2, 1, AT, PAGE, 1 << 32), 0),
    ]  # fmt: skip
    with rig.Rig(steps_spec(steps, [])) as r:
        r.machine.run(rig.SECONDS * 10**9, max_instructions=rig.LIMIT)
        console = r.machine.console.decode(errors="replace")
        assert "is not handed over by a file of its own" in console
        assert "Freeze failed for token[0x14]" in console


def test_memory_must_be_retrieved_before_it_is_finished() -> None:
    new = [
        ("open", 0), ("retrieve 0 s", 0), ("get 2 0 20", 0), ("get 3 0 30", 0), ("finish 0", BUSY),
        ("get 1 0 10", 0),
        ("finish 0", 0), ("stat 1", 0), ("close 1", 0), (i.ioas_unmap(2, 1, IOVA, 4 * MIB), 0),
    ]  # fmt: skip
    with rig.Rig(steps_spec(HANDED, new)) as r:
        outcome = r.finish().check()
        compare(outcome, "after", new)
        assert outcome.log("iommufd_luo: memory that is mapped was not retrieved")


@pytest.mark.parametrize("which", [(), ("get 1 0 10",), ("get 1 0 10", "stat 1")])
def test_what_nobody_asks_for_is_stopped_and_freed(which: tuple[str, ...]) -> None:
    new = [("open", 0), ("retrieve 0 s", 0), *[(order, 0) for order in which], ("finish 0", 0),
           ("file 4 /dev/iommu", 0), (i.ioas_alloc(4), 0), ("file 3 /dev/vfio/devices/vfio0", 0),
           (i.bind(3, 4), 0), (i.attach(3, 1), 0)]  # fmt: skip
    with rig.Rig(steps_spec(HANDED, new)) as r:
        outcome = r.finish().check()
        compare(outcome, "after", new)
        assert not outcome.log("stay reserved") and not outcome.log("WARN")


def test_never_finished_goes_on() -> None:
    new = [("open", 0), ("retrieve 0 s", 0), ("get 2 0 20", 0), ("close 2", 0), ("close 0", 0)]
    seen: list[int] = []
    with rig.Rig(steps_spec(HANDED, new)) as r:
        r.at(1, "session_release", lambda m: seen.append(edu_command(m)))
        outcome = r.finish().check()
        compare(outcome, "after", new)
        assert not outcome.log("WARN")
        assert seen and seen[-1] & MASTER, "it is stopped only at the end of the machine"


def test_a_rich_state_goes_over_twice() -> None:
    """Two files, three address spaces, rights, small pages, tables of their own, allowed ranges, copies."""
    put = [(f"store32 {AT + n:#x} {v:#x}", 0) for n, v in ((0, 1 << 24), (4, 0), (8, (1 << 28) - 1), (12, 0))]
    rich: list[Step] = [
        ("open", 0), ("create 0 s", 0), *memory(), *memory(5, 4 * MIB, AT + 64 * MIB), *put, *OPENED,
        (f"madvise {AT + 64 * MIB} {4 * MIB} 14", 0),
        (i.ioctl(2, i.ALLOW_IOVAS, "IIIQ", 1, 1, 0, AT), 0),
        (i.ioas_map(2, 1, AT, 16 * PAGE, IOVA), 0),
        (i.ioas_map(2, 1, AT, PAGE, IOVA * 2, FIXED | READABLE), 0),
        (i.ioas_map(2, 1, AT + 64 * MIB, 4 * MIB, IOVA * 3), 0), *ATTACHED, *MASTER_ON,
        (i.ioas_alloc(2), 0), (i.ioctl(2, i.OPTION, "IHHIQ", 1, 0, 0, 4, 0), 0),
        (i.ioas_copy(2, 4, 1, 4 * MIB, 0, IOVA * 3), 0), (i.hwpt_alloc(2, 2, 4), 0),
        (i.hwpt_alloc(2, 2, 1), 0),
        ("file 6 /dev/iommu", 0), (i.ioas_alloc(6), 0), (i.ioas_map(6, 1, AT + MIB, MIB, IOVA), 0),
        ("preserve 0 1 10", 0), ("preserve 0 5 50", 0), ("preserve 0 2 20", 0), ("preserve 0 6 60", 0),
        ("preserve 0 3 30", 0),
    ]  # fmt: skip
    get = [
        ("open", 0),
        ("retrieve 0 s", 0),
        *[(f"get {n} 0 {n}0", 0) for n in (1, 5, 6, 2, 3)],
        ("finish 0", 0),
    ]
    again = [*get, ("create 0 s", 0), *[(f"preserve 0 {n} {n}0", 0) for n in (1, 5, 2, 6, 3)], ("hold", 0)]
    end = [
        *get, (i.attach(3, 6), 0), (i.attach(3, 5), 0), (i.ioas_map(2, 1, AT, PAGE, 0, READABLE), FAULT),
        (i.mmap(1, 4 * MIB, AT), 0), (i.ioas_map(2, 1, AT, PAGE, 0, READABLE), 0), (i.detach(3), 0),
        (i.ioas_unmap(2, 1, 0, (1 << 64) - 1), 0), (i.ioas_unmap(2, 4, 0, (1 << 64) - 1), 0),
        (i.ioas_unmap(6, 1, IOVA, MIB), 0), (i.destroy(2, 5), 0), (i.destroy(2, 4), 0),
    ]  # fmt: skip
    run = rig.Spec(
        ("old", "new", "old"), before=[command([*(s for s, _ in rich), "hold"], 0)],
        after=[command([s for s, _ in again], 1), command([s for s, _ in end], 2)],
        cmdline=f"{rig.SCRATCH} {VFIO}", programs=PROGRAMS, devices=DEVICES, memory=256 << 20,
    )  # fmt: skip
    with rig.Rig(run) as r:
        _, first, files = at_jump(r, 0)
        assert len(first.domains) == 3 and len(files) == 2
        small, large = first.domains[2], first.domains[1]
        assert len(small.tables) == 3 + 2, "4 KiB pages only"
        assert {m.prot for m in large.mappings} == {READ | WRITE, READ}
        assert files[0].ranges == [(1 << 24, (1 << 28) - 1, 1, 2)]
        _, second, later = at_jump(r, 1)
        assert first.domains == second.domains and first.devices == second.devices
        assert [(f.objects, f.areas, f.ranges) for f in files] == [
            (f.objects, f.areas, f.ranges) for f in later
        ]
        outcome = r.finish().check()
        said = [line.split(": ", 1) for line in outcome.output().strip().split("\n")]
        assert [(order, int(answer.split()[0])) for order, answer in said] == end
        assert not outcome.log("WARN") and not outcome.log("refused") and not outcome.log("stay reserved")
        chosen = i.quads(said[-7][1], 32)[0]
        assert 1 << 24 <= chosen < 1 << 28, "the allowed range holds on"


def test_inspect_shows_it() -> None:
    with rig.Rig(steps_spec(HANDED, [])) as r:
        handover, _, _ = at_jump(r)
        report = check(handover, "J")
        document = describe(handover, report)
        luo = Luo.read(handover)
        assert luo is not None and luo.iommu is not None and luo.pci is not None
        tree = Branch("")
        inspect_devices.draw_iommu(tree, luo.iommu)
        inspect_devices.draw_pci(tree, luo.pci)
        files = [inspect_devices.file_line(f) for s in luo.sessions for f in s.files]
    assert document["luo"]["iommu"]["devices"] == {"00:03.0": 1}
    (domain,) = document["luo"]["iommu"]["domains"]
    assert sum(m["size"] for m in domain["mappings"]) == 4 * MIB and domain["mappings"][0]["rights"] == "rw"
    assert [f["function"] for f in document["luo"]["pci"]["functions"]] == ["00:03.0"]
    shown = document["luo"]["sessions"][0]["files"]
    assert [o["kind"] for o in shown[1]["iommufd"]["objects"]] == ["ioas", "device", "hwpt"]
    assert shown[2]["vfio"]["function"] == "00:03.0" and shown[2]["vfio"]["table"] == 3
    lines = "\n".join(tree.lines())
    assert "function 00:03.0: domain 1" in lines and "domain 1: 4 MiB mapped, " in lines
    assert f"IOVA {IOVA:#x} → " in lines and "[1234:11e8], class 00ff00" in lines
    assert files[0] is None and files[1] == "1 ioas, 1 hwpt, 1 device, 1 area with 4 MiB"
    assert files[2] is not None and files[2].startswith("00:03.0 [1234:11e8], object 2 in 3, ")


@pytest.mark.parametrize(
    ("got", "error"), [(("1", "2"), 0), (("1", "3"), BUSY)], ids=["without the device", "without the iommufd"]
)
def test_half_of_a_device(got: tuple[str, ...], error: int) -> None:
    new = [("open", 0), ("retrieve 0 s", 0), *[(f"get {n} 0 {n}0", 0) for n in got], ("finish 0", error)]
    if not error:
        new += [(i.destroy(2, 3), NOENT), (i.destroy(2, 2), NOENT), (i.ioas_unmap(2, 1, IOVA, 4 * MIB), 0),
                ("file 4 /dev/vfio/devices/vfio0", 0), (i.bind(4, 2), 0), (i.attach(4, 1), 0)]  # fmt: skip
    with rig.Rig(steps_spec(HANDED, new)) as r:
        outcome = r.finish().check()
        compare(outcome, "after", new)
        assert not outcome.log("WARN")


def test_memory_in_scratch_is_moved_before_it_is_mapped() -> None:
    """A file that fills more than what is outside; and private memory the same way."""
    populate = 0x8000
    size = 64 * MIB
    steps: list[Step] = [
        ("memfd 1 2", 0), (f"truncate 1 {size}", 0), (i.mmap(1, size, AT, flags=SHARED | populate), 0),
        (f"store32 {AT + size - 4:#x} 0x1234", 0), *OPENED,
        (i.ioas_map(2, 1, AT + size - MIB, MIB, IOVA), 0),
        ("close 1", 0), (f"load32 {AT + size - 4:#x}", 0),
        (i.ioas_unmap(2, 1, IOVA, MIB), 0), (f"munmap {AT:#x} {size}", 0),
        (i.mmap(-1, size, AT, flags=PRIVATE | populate), 0), (f"store32 {AT + size - 4:#x} 0x5678", 0),
        (i.ioas_map(2, 1, AT + size - MIB, MIB, IOVA), 0), (f"load32 {AT + size - 4:#x}", 0),
        (f"store32 {AT + size - 8:#x} 0x9abc", 0), *ATTACHED,
    ]  # fmt: skip
    with rig.Rig(steps_spec(steps, memory=128 << 20)) as r:
        moved: list[int] = []
        r.at(0, "migrate_folio", lambda m: moved.append(m.instructions))
        outcome = r.finish().check()
        said = compare(outcome, "before", steps)
        assert said[8].split()[1] == "0x1234" and said[14].split()[1] == "0x5678"
        assert moved, "nothing was in scratch: the test tries nothing"


# --- damage -------------------------------------------------------------------------------------------------

MASTER = 4


def edu_command(m: Machine) -> int:
    function = m.platform.extras["edu"]
    assert isinstance(function, Edu)
    return function.register(4, 2)


def flip(phys: int, bit: int) -> Callable[[Machine], None]:
    def damage(m: Machine) -> None:
        byte = m.memory.copy(phys + bit // 8, 1)[0]
        m.memory.write(phys + bit // 8, bytes([byte ^ 1 << bit % 8]), "test")

    return damage


def places(iommu: Iommu, iommufd: Iommufd) -> dict[str, tuple[int, int]]:
    """What can be damaged: (address, bytes that mean something)."""
    domain = next(iter(iommu.domains.values()))
    pud, pmd = domain.tables[1], domain.tables[2]
    at = domain.mappings[0].iova
    return {
        "record": (iommu.phys, 4096),
        "root": (iommu.root, 4096),
        "contexts": (iommu.context_tables[0], 4096),
        "interrupts": (iommu.interrupts & ~0xFFF, 4096),
        "top": (domain.top, 4096),
        "level 3": (pud, 4096),
        "level 2": (pmd, 4096),
        "an entry that is used": (pmd + 8 * (at >> 21 & 511), 8),
        "iommufd": (iommufd.phys, iommufd.size),
    }


def test_damage_anywhere_stops_dma_and_says_so() -> None:
    """One bit at a time, seeded: in records and in every table that hardware reads."""
    new = [("open", 0), ("retrieve 0 s", 0), ("get 1 0 10", 0), ("get 2 0 20", IO), ("get 3 0 30", IO)]
    random = Random(5)
    with rig.Rig(steps_spec(HANDED, new)) as r:
        _, iommu, files = at_jump(r)
        snapshot = r.machine.snapshot()
        assert edu_command(r.machine) & MASTER
        seen: list[int] = []
        r.at(1, "mm:free_all", lambda m: seen.append(edu_command(m)))
        for name, (phys, size) in places(iommu, files[0]).items():
            for bit in sorted(random.sample(range(8 * size), 2)):
                r.machine.restore(snapshot)
                flip(phys, bit)(r.machine)
                found = {v.id for v in check(r.handover(0), "J").violations}
                assert found & {"INV-12", "INV-20", "INV-21"}, f"luemu check does not see bit {bit} of {name}"
                outcome = r.branch(snapshot, flip(phys, bit))
                where = f"{name}, bit {bit}"
                outcome.check()
                compare(outcome, "after", new)
                assert outcome.log("DMAR: what the previous kernel handed over is refused: "), where
                assert not seen.pop() & MASTER, where
                assert not outcome.log("WARN"), where


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("iommu-state", "tables are damaged, or lead to memory that is not preserved"),
        ("iommu-off", "remapping was switched off"),
    ],
)
def test_what_goes_wrong_on_purpose(what: str, why: str) -> None:
    """break= of the old kernel, see kernels/kernel/breakage.c."""
    new = [("open", 0), ("retrieve 0 s", 0), ("get 2 0 20", IO), ("get 3 0 30", IO)]
    with rig.Rig(steps_spec(HANDED, new, cmdline=f"{VFIO} break={what}")) as r:
        outcome = r.finish().check()
        compare(outcome, "after", new)
        assert outcome.log("is refused: ", why), outcome.console[-3000:]


def test_a_kernel_that_uses_no_remapping_stops_devices() -> None:
    new = [("open", 0), ("retrieve 0 s", 0), ("get 2 0 20", IO), ("get 3 0 30", IO)]
    seen: list[int] = []
    with rig.Rig(steps_spec(HANDED, new, later="iommu=off")) as r:
        r.at(1, "mm:free_all", lambda m: seen.append(edu_command(m)))
        outcome = r.finish().check()
        compare(outcome, "after", new)
        assert outcome.log("is refused: the command line says iommu=off")
        assert len(seen) == 1 and not seen[0] & MASTER


def repaired(phys: int, size: int, at: int, layout: str, value: int) -> Callable[[Machine], None]:
    """A field is another, and the checksum is right."""

    def damage(m: Machine) -> None:
        data = bytearray(m.memory.copy(phys, size))
        struct.pack_into(f"<{layout}", data, at, value)
        struct.pack_into("<Q", data, 0, checksum(bytes(data[8:])))
        m.memory.write(phys, bytes(data), "test")

    return damage


@pytest.mark.campaign
def test_lies_with_a_right_checksum() -> None:
    """Every field that has a meaning: another value is found by what it should agree with."""
    new = [("open", 0), ("retrieve 0 s", 0), ("get 2 0 20", IO), ("get 3 0 30", IO)]
    with rig.Rig(steps_spec(HANDED, new)) as r:
        _, iommu, files = at_jump(r)
        file = files[0]
        snapshot = r.machine.snapshot()
        d = iommu.domains[1]
        domain, device, record = 128, 2176, 3200
        objects = IOMMUFD.size
        areas = objects + 24 * len(file.objects)
        extents = areas + 32 * len(file.areas)
        other = iommu.phys
        r1, r2 = (iommu.phys, 4096), (file.phys, file.size)
        lies: list[tuple[str, int, int, int, str, int]] = [
            ("no domains", *r1, 8, "I", 0), ("65 domains", *r1, 8, "I", 65),
            ("no devices", *r1, 12, "I", 0), ("two devices", *r1, 12, "I", 2),
            ("no files", *r1, 16, "I", 0), ("two files", *r1, 16, "I", 2), ("reserved", *r1, 20, "I", 1),
            ("reserved", *r1, 64, "Q", 1), ("reserved", *r1, 4088, "Q", 1),
            ("unit", *r1, 24, "Q", 0xFED91000), ("capabilities", *r1, 32, "Q", iommu.capabilities ^ 1),
            ("extended", *r1, 40, "Q", iommu.extended ^ 1 << 40), ("root", *r1, 48, "Q", d.top),
            ("interrupts", *r1, 56, "Q", 0), ("interrupts", *r1, 56, "Q", d.top | 7),
            ("domain", *r1, domain, "I", 2), ("domain", *r1, domain, "I", 0),
            ("levels", *r1, domain + 4, "I", 3), ("levels", *r1, domain + 4, "I", 5),
            ("top", *r1, domain + 8, "Q", iommu.root), ("tables", *r1, domain + 16, "Q", d.nr_tables + 1),
            ("bytes", *r1, domain + 24, "Q", d.bytes - PAGE), ("function", *r1, device, "H", 0x20),
            ("its domain", *r1, device + 4, "I", 2), ("file", *r1, record, "Q", iommu.phys),
            ("file", *r1, record, "Q", 0), ("file", *r1, record, "Q", (1 << 40) + PAGE),
            ("size", *r2, 8, "Q", file.size - 8), ("size", *r2, 8, "Q", 1 << 40),
            ("objects", *r2, 16, "I", 2), ("objects", *r2, 16, "I", 1 << 31), ("areas", *r2, 20, "I", 0),
            ("extents", *r2, 24, "I", 0), ("mode", *r2, 32, "I", 2), ("reserved", *r2, 36, "I", 1),
            ("id", *r2, objects, "I", 0), ("id twice", *r2, objects, "I", 2),
            ("kind", *r2, objects + 4, "I", 2), ("kind", *r2, objects + 4, "I", 9),
            ("parent", *r2, objects + 24 + 8, "I", 1), ("flags", *r2, objects + 12, "I", 8),
            ("arg", *r2, objects + 16, "I", 1), ("function", *r2, objects + 24 + 16, "I", 0x20),
            ("domain", *r2, objects + 48 + 16, "I", 2), ("iova", *r2, areas, "Q", IOVA + PAGE),
            ("iova", *r2, areas, "Q", IOVA + 1), ("length", *r2, areas + 8, "Q", 4 * MIB - PAGE),
            ("ioas", *r2, areas + 16, "I", 3), ("prot", *r2, areas + 20, "I", 1),
            ("prot", *r2, areas + 20, "I", 7), ("extent", *r2, areas + 24, "I", 1),
            ("memory", *r2, extents, "Q", other), ("memory", *r2, extents, "Q", 1 << 45),
            ("memory", *r2, extents + 8, "Q", 1 << 45),
        ]  # fmt: skip
        for what, phys, size, at, layout, value in lies:
            r.machine.restore(snapshot)
            repaired(phys, size, at, layout, value)(r.machine)
            # the host knows the machine only by its memory
            if what not in ("unit", "capabilities", "extended", "interrupts"):
                found = {v.id for v in check(r.handover(0), "J").violations}
                assert found & {"INV-12", "INV-20", "INV-21"}, f"luemu check does not see {what} at {at}"
            outcome = r.branch(snapshot, repaired(phys, size, at, layout, value))
            where = f"{what} at {at} is {value:#x}"
            outcome.check()
            assert outcome.log("DMAR: what the previous kernel handed over is refused: "), where
            compare(outcome, "after", new)
            assert not outcome.log("WARN"), where
