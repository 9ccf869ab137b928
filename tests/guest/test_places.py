"""Where kernels run, and with how much memory: any address that is a multiple of 2 MiB, below and above
4 GiB; 128 MiB with 48 MiB of scratch; 64 GiB, of which the host gives only what is used.
"""

from __future__ import annotations

import json
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Callable

import pytest

import kernels
from emu import Machine
from emu.boot import Boot
from emu.initramfs import Initramfs
from emu.machine import StopKind
from tests.guest.running import RELEASES, symbols

MIB, GIB = 1 << 20, 1 << 30
PAGE, STRUCT_PAGE = 4096, 48
PREF_ADDRESS = 0x258
"""offset in a bzImage: where a boot loader should put it"""
ENTRY = 0x200
"""offset of the 64-bit entry in a loaded image"""


def bzimage(release: str, address: int | None = None) -> bytes:
    """An image; with another preferred address, if one is given."""
    image = bytearray(kernels.binary(f"{release}.bzImage").read_bytes())
    if address is not None:
        struct.pack_into("<Q", image, PREF_ADDRESS, address)
    return bytes(image)


def run(
    first: bytes,
    chain: list[str],
    cmdline: str,
    memory: int,
    prepare: Callable[[Machine], None] | None = None,
) -> str:
    """Console of a chain that must go well. `prepare` gets the machine before the first instruction."""
    files = Initramfs()
    for release in sorted(set(chain)):
        files.add_file(f"/boot/{release}", bzimage(release))
    files.add_file("/boot/chain", "".join(f"/boot/{release}\n" for release in chain).encode())
    with Machine(memory) as m:
        m.boot(Boot(first, cmdline, files.build()))
        if prepare is not None:
            prepare(m)
        stop = m.run(max_instructions=3_000_000_000)
        text = m.console.decode("ascii").replace("\r\n", "\n")
        assert stop.kind is StopKind.POWER_OFF and text.endswith("luemu: verdict ok\n"), text[-2000:]
        return text


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("address", [0x200000, 0x600000, 0x1A00000, 0x4000000, 0x7A00000, 0x9E00000])
def test_any_address_below_4_gib(release: str, address: int) -> None:
    """The kernel runs where the loader put it, and hands over from there."""
    image = bzimage(release, address)
    head = image[(image[0x1F1] + 1) * 512 :][ENTRY : ENTRY + 64]
    seen: list[bytes] = []

    def prepare(m: Machine) -> None:
        start = symbols(release).address("start_kernel")
        assert start is not None

        def started(machine: Machine, _: int) -> None:
            seen.append(machine.memory.read(address + ENTRY, len(head)).tobytes())

        m.probe(start, started)

    other = RELEASES[1 - RELEASES.index(release)]
    run(image, [other], "kho=on kho_scratch=16M,0,0 test_kho.max_mem=256K", 256 * MIB, prepare)
    assert seen == [head], f"{release} did not run at {address:#x}"


@pytest.mark.parametrize("scratch", ["0,64M,0", "0,0,64M"])
def test_above_4_gib(scratch: str) -> None:
    """In a chain, every kernel but the first."""
    text = run(bzimage("old"), ["new", "old", "old"], f"kho=on kho_scratch={scratch}", 6 * GIB)
    at = [int(a, 16) for a in re.findall(r"kexec-bzImage64: kernel at \[mem (0x[0-9a-f]+)-", text)]
    assert len(at) == 3 and all(a >= 4 * GIB and a % (2 * MIB) == 0 for a in at), at


@pytest.mark.parametrize("chain", [["old", "new", "old"], ["new", "old", "new"]], ids=" ".join)
def test_in_128_mib_with_48_mib_of_scratch(chain: list[str]) -> None:
    first, *rest = chain
    text = run(bzimage(first), rest, "kho=on kho_scratch=48M,0,0 reserve_mem=1M:4K:one", 128 * MIB)
    assert text.count("test_kho: KHO restore succeeded\n") == 2
    scratch = re.findall(r"^  node   0: \[mem 0x0*([0-9a-f]+)-0x0*([0-9a-f]+)\] scratch$", text, re.MULTILINE)
    assert [int(end, 16) + 1 - int(start, 16) for start, end in scratch] == [48 * MIB] * 2


def test_a_machine_of_64_gib_takes_less_than_2_gib_of_the_host() -> None:
    """A whole verified update, junk on, in a process of its own, so that its peak can be told."""
    words = [sys.executable, "-m", "emu", "run", "--workload", "kho", "--memory", "64G", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    assert (document["ok"], document["reasons"], document["memory_bytes"]) == (True, [], 64 * GIB)
    # scratch has room for the struct pages of all of it, in case that much is preserved in small pieces
    assert sum(area["size"] for area in document["scratch"]) >= 64 * GIB // PAGE * STRUCT_PAGE
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak << 10 < 2 * GIB, f"{peak >> 10} MiB resident (another child had {before >> 10} before)"
