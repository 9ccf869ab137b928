"""VT-d against a second model, by random programs; damage never raises; a restored unit goes on alike.

The second model is written from the specification a second time, and as simply as possible: caches are lists
of what was read, searched from the front; tables are walked by recursion. It shares no code with the first.
"""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, field

import pytest

from emu.devices.device import plain
from tests.devices.dma_rig import (
    CONTEXTS,
    QUEUE,
    ROOT,
    STATUS,
    TABLE,
    FakeRam,
    Remapping,
)

TABLES = [0x20000 + 0x1000 * i for i in range(6)]
SOURCES = [0x08, 0x10, 0x18, 0x1C, 0x108]
HIGH = 1 << 32
IOVAS = [
    *(0x1000 * i for i in range(4)), 1 << 21, (1 << 21) + 0x1000, 1 << 30, (1 << 30) + 0x1234, 511 << 30,
    1 << 39, (1 << 39) + 0x3000, 1 << 48, 0xFEE00000,
]  # fmt: skip


class Stop(Exception):
    """The model refuses a request: (reason, whether it is recorded)."""


@dataclass
class Page:
    domain: int
    start: int
    size: int
    phys: int
    rights: int


@dataclass
class Model:
    """What the specification says, without registers: commands are methods."""

    ram: FakeRam
    enabled: bool = False
    remapping: bool = False
    compatibility: bool = False
    root: int = 0
    irta: int = 0
    contexts: list[tuple[int, int]] = field(default_factory=list)  # (source, entry of 128 bits)
    pages: list[Page] = field(default_factory=list)
    entries: list[tuple[int, int]] = field(default_factory=list)  # (index, entry of 128 bits)
    records: list[int] = field(default_factory=lambda: [0] * 8)  # 128 bits each
    at: int = 0
    overflow: bool = False

    def load(self, phys: int, size: int, reason: int, recorded: bool = True) -> int:
        inside = phys + size <= self.ram.SIZE or HIGH <= phys <= HIGH + self.ram.SIZE - size
        if not inside:
            raise Stop(reason, recorded)
        return int.from_bytes(self.ram.get(phys, size), "little")

    def bits(self, value: int, first: int, last: int) -> int:
        return value >> first & (1 << last - first + 1) - 1

    def log(self, record: int) -> None:
        if self.overflow:
            return
        if self.records[self.at] >> 127:
            self.overflow = True
            return
        self.records[self.at] = record
        self.at = (self.at + 1) % 8

    # --- DMA ---

    def access(self, source: int, iova: int, write: bool) -> tuple[int | None, int]:
        """(physical address, reason)."""
        if not self.enabled:
            return iova, 0
        if 0xFEE00000 <= iova < 0xFEF00000:
            return None, 0xFF
        try:
            return self.translated(source, iova, write), 0
        except Stop as stop:
            reason, recorded = stop.args
            if recorded:
                self.log(
                    1 << 127 | (0 if write else 1 << 126) | reason << 96 | source << 64 | iova >> 12 << 12
                )
            return None, reason

    def translated(self, source: int, iova: int, write: bool) -> int:
        cached = [entry for who, entry in self.contexts if who == source]
        entry = cached[0] if cached else self.read_context(source)
        if not cached:
            self.contexts.append((source, entry))
        recorded = not self.bits(entry, 1, 1)
        levels = self.bits(entry, 64, 66) + 2
        domain = self.bits(entry, 72, 87)
        if iova >= 1 << 12 + 9 * levels:
            raise Stop(4, recorded)
        if self.bits(entry, 2, 3) == 2:
            return iova
        refusal = Stop(5 if write else 6, recorded)
        hits = [p for p in self.pages if p.domain == domain and p.start <= iova < p.start + p.size]
        if hits:
            page = min(hits, key=lambda p: p.size)
        else:
            table = self.bits(entry, 12, 63) << 12
            page = self.look(table, levels, iova, 0, 3, 2 if write else 1, recorded, refusal)
            page.domain = domain
            if 0xFEE00000 <= page.phys + iova - page.start < 0xFEF00000:
                raise Stop(0xE, recorded)
            self.pages.append(page)
        if not page.rights & (2 if write else 1):
            raise refusal
        phys = page.phys + iova - page.start
        if 0xFEE00000 <= phys < 0xFEF00000:
            raise Stop(0xE, recorded)
        return phys

    def read_context(self, source: int) -> int:
        entry = self.load(self.root + 16 * (source // 256), 16, 8)
        if entry % 2 == 0:
            raise Stop(1, True)
        if self.bits(entry, 1, 11) or self.bits(entry, 48, 127):
            raise Stop(0xA, True)
        entry = self.load((self.bits(entry, 12, 47) << 12) + 16 * (source % 256), 16, 9)
        recorded = not self.bits(entry, 1, 1)
        if entry % 2 == 0:
            raise Stop(2, recorded)
        if any(self.bits(entry, *r) for r in ((4, 11), (48, 63), (71, 71), (88, 127))):
            raise Stop(0xB, recorded)
        if self.bits(entry, 2, 3) in (1, 3) or self.bits(entry, 64, 66) not in (1, 2):
            raise Stop(3, recorded)
        return entry

    def look(
        self,
        table: int,
        level: int,
        iova: int,
        start: int,
        rights: int,
        needed: int,
        recorded: bool,
        no: Stop,
    ) -> Page:
        size = 4096 * 512 ** (level - 1)
        number = (iova - start) // size
        entry = self.load(table + 8 * number, 8, 7, recorded)
        start += number * size
        if not entry & needed:
            raise no
        bad = self.bits(entry, 48, 51) or self.bits(entry, 62, 62)
        target = self.bits(entry, 12, 47) << 12
        last = level == 1 or (level < 4 and self.bits(entry, 7, 7))
        if last:
            if bad or target % size:
                raise Stop(0xC, recorded)
            return Page(0, start, size, target, rights & entry & 3)
        if bad or self.bits(entry, 11, 11) or self.bits(entry, 7, 7):
            raise Stop(0xC, recorded)
        return self.look(target, level - 1, iova, start, rights & entry, needed, recorded, no)

    # --- interrupts ---

    def interrupt(self, source: int, address: int, data: int) -> tuple[object, int]:
        """((mode, vector, destination, logical, level) or "as it is", reason)."""
        if not self.remapping:
            return "as it is", 0
        index = 0
        try:
            if not self.bits(address, 4, 4):
                if self.compatibility and not self.bits(self.irta, 11, 11):
                    return "as it is", 0
                raise Stop(0x25, True)
            with_subhandle = self.bits(address, 3, 3)
            if with_subhandle and self.bits(data, 16, 31):
                raise Stop(0x20, True)
            index = self.bits(address, 5, 19) + 0x8000 * self.bits(address, 2, 2)
            index += self.bits(data, 0, 15) if with_subhandle else 0
            return self.remapped(source, index), 0
        except Stop as stop:
            reason, recorded = stop.args
            if recorded:
                self.log(1 << 127 | reason << 96 | source << 64 | index % 65536 << 48)
            return None, reason

    def remapped(self, source: int, index: int) -> object:
        if index >= 2 ** (self.bits(self.irta, 0, 3) + 1):
            raise Stop(0x21, True)
        wide = self.bits(self.irta, 11, 11)
        cached = [entry for number, entry in self.entries if number == index]
        if cached:
            entry = cached[0]
        else:
            entry = self.load((self.irta >> 12 << 12) + 16 * index, 16, 0x23)
            recorded = not self.bits(entry, 1, 1)
            if entry % 2 == 0:
                raise Stop(0x22, recorded)
            reserved = [(12, 15), (24, 31), (84, 127)] + ([] if wide else [(32, 39), (48, 63)])
            if any(self.bits(entry, *r) for r in reserved) or self.bits(entry, 82, 83) == 3:
                raise Stop(0x24, recorded)
            if self.bits(entry, 5, 7) in (3, 6):
                raise Stop(0x24, recorded)
            self.entries.append((index, entry))
        mine = self.bits(entry, 64, 79)
        check, quality = self.bits(entry, 82, 83), self.bits(entry, 80, 81)
        allowed = True
        if check == 1:
            functions = [mine & 7 ^ flip for flip in range(8) if not flip & ~(0, 4, 6, 7)[quality]]
            allowed = source >> 3 == mine >> 3 and source & 7 in functions
        elif check == 2:
            allowed = mine // 256 <= source // 256 <= mine % 256
        if not allowed:
            raise Stop(0x26, not self.bits(entry, 1, 1))
        logical, mode = bool(self.bits(entry, 2, 2)), self.bits(entry, 5, 7)
        if self.bits(entry, 3, 3) and logical and not mode:
            mode = 1
        destination = self.bits(entry, 32, 63) if wide else self.bits(entry, 40, 47)
        if destination == 0xFF and not wide and not logical:
            destination = 0xFFFFFFFF
        return mode, self.bits(entry, 16, 23), destination, logical, bool(self.bits(entry, 4, 4))

    # --- invalidation ---

    def forget_contexts(self, kind: int, domain: int, source: int, mask: int) -> None:
        def goes(who: int, entry: int) -> bool:
            if kind == 1:
                return True
            same = self.bits(entry, 72, 87) == domain
            if kind == 2:
                return same
            free = (0, 4, 6, 7)[mask]
            return same and who & ~free == source & ~free

        self.contexts = [(w, e) for w, e in self.contexts if not goes(w, e)]

    def forget_pages(self, kind: int, domain: int, address: int, mask: int) -> None:
        size = 4096 * 2**mask
        first = address // size * size

        def goes(page: Page) -> bool:
            if kind == 1:
                return True
            overlaps = page.start < first + size and first < page.start + page.size
            return page.domain == domain and (kind == 2 or overlaps)

        self.pages = [p for p in self.pages if not goes(p)]

    def forget_entries(self, everything: bool, index: int, mask: int) -> None:
        self.entries = [
            (i, e) for i, e in self.entries if not everything and i // 2**mask != index // 2**mask
        ]


class Both:
    """The unit by its registers, and the model by its methods, on the same RAM."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.r = Remapping()
        self.m = Model(self.r.ram)
        self.queue = False
        self.compared = 0
        self.reasons: set[int] = set()
        self.stale = 0
        for table in TABLES:
            for slot in (0, 1, 2, 3, 511):
                self.r.ram.put64(table + 8 * slot, self.word())
        for source in SOURCES:
            domain, width = self.draw.choice([1, 2, 7]), self.draw.choice([1, 2])
            self.r.ram.put64(
                CONTEXTS + 16 * (source & 0xFF), self.draw.choice(TABLES) | 1, domain << 8 | width
            )
        self.r.ram.put64(ROOT, CONTEXTS | 1, 0, CONTEXTS | 1, 0)
        self.r.w(0x20, ROOT, 8)
        self.r.command(1 << 30)
        self.r.command(1 << 31)
        self.m.root, self.m.enabled = ROOT, True

    def word(self) -> int:
        """An entry of a page table: mostly sensible."""
        draw = self.draw
        target = draw.choice(
            [*TABLES, 0x80000, 0x81000, 0x82000, HIGH, 1 << 21, 1 << 30, 0xFEE00000, 1 << 47]
        )
        flags = draw.choice([3, 3, 3, 1, 2, 0, 0x83, 0x83, 0x81])
        if draw.random() < 0.1:
            flags |= 1 << draw.randrange(64)
        return target | flags

    def mutate(self) -> None:
        draw, ram = self.draw, self.r.ram
        what = draw.random()
        if what < 0.6:
            slot = draw.choice([0, 0, 0, 1, 1, 2, 3, 511])
            ram.put64(draw.choice(TABLES) + 8 * slot, self.word())
        elif what < 0.8:
            source = draw.choice(SOURCES)
            low = draw.choice(TABLES) | draw.choice([1, 1, 1, 1, 3, 0, 2, 9, 9, 5])
            high = draw.choice([1, 2, 2, 7]) << 8 | draw.choice([1, 1, 2, 2, 0, 3])
            if draw.random() < 0.1:
                low ^= 1 << draw.randrange(64)
            if draw.random() < 0.1:
                high ^= 1 << draw.randrange(64)
            ram.put64(CONTEXTS + 16 * (source & 0xFF), low, high)
        elif what < 0.85:
            bus = draw.randrange(2)
            low = draw.choice([CONTEXTS | 1] * 6 + [CONTEXTS, CONTEXTS | 3, 1 << 47 | 1])
            ram.put64(ROOT + 16 * bus, low, 1 if draw.random() < 0.05 else 0)
        else:
            low = draw.choice([1, 1, 1, 3, 0, 2]) | draw.randrange(32) << 2 | draw.randrange(256) << 16
            low |= draw.choice([0, 3 << 40, 255 << 40, 3 << 32])
            high = draw.choice(SOURCES) | draw.randrange(16) << 16
            if draw.random() < 0.1:
                low ^= 1 << draw.randrange(64)
            ram.put64(TABLE + 16 * draw.randrange(8), low, high)

    def command(self) -> None:
        draw, r, m = self.draw, self.r, self.m
        what = draw.randrange(6)
        on = draw.random() < 0.8
        if what == 0:
            root = draw.choice([ROOT] * 5 + [0x8000_0000])
            r.w(0x20, root, 8)
            r.command(1 << 30)
            m.root = root
        elif what == 1:
            irta = TABLE | draw.choice([2, 2, 1, 2 | 1 << 11])
            r.w(0xB8, irta, 8)
            r.command(1 << 24)
            m.irta = irta
        else:
            bit, name = [(31, "enabled"), (25, "remapping"), (23, "compatibility"), (26, "queue")][what - 2]
            if on:
                if name == "queue" and not self.queue:
                    r.queue_on()
                r.command(1 << bit)
            else:
                r.off(1 << bit)
            setattr(self if name == "queue" else m, name, on)

    def invalidate(self) -> None:
        draw, r, m = self.draw, self.r, self.m
        kind, domain = draw.choice([1, 2, 3, 3, 3, 3]), draw.choice([1, 2, 7])
        if draw.random() < 0.4:
            source, mask = draw.choice(SOURCES), draw.randrange(4)
            if self.queue:
                r.submit(1 | kind << 4 | domain << 16 | source << 32 | mask << 48)
            else:
                r.w(0x28, 1 << 63 | kind << 61 | mask << 32 | source << 16 | domain, 8)
            m.forget_contexts(kind, domain, source, mask)
        elif draw.random() < 0.8 or not self.queue:
            address, mask = draw.choice(IOVAS) & ~0xFFF, draw.choice([0, 0, 1, 2, 9, 10, 18])
            if self.queue:
                r.submit(2 | kind << 4 | domain << 16, address | mask)
            else:
                r.w(0x100, address | mask, 8)
                r.w(0x108, 1 << 63 | kind << 60 | domain << 32, 8)
            m.forget_pages(kind, domain, address, mask)
        else:
            index, mask, chosen = draw.randrange(8), draw.randrange(3), draw.random() < 0.7
            r.submit(4 | (16 if chosen else 0) | mask << 27 | index << 32)
            m.forget_entries(not chosen, index, mask)

    def access(self) -> None:
        source, write = self.draw.choice(SOURCES), self.draw.random() < 0.5
        iova = self.draw.choice(IOVAS) + self.draw.choice([0, 0, 0x123, 0xFFF])
        phys, _, fault = self.r.unit.translate(source, iova, write, 0)
        expected, reason = self.m.access(source, iova, write)
        assert (None if fault else phys, fault) == (expected, reason), (
            f"source {source:#x}, iova {iova:#x}, write {write}"
        )
        self.compared += 1
        self.reasons.add(reason)
        if self.m.enabled and not fault:
            fresh = copy.copy(self.m)
            fresh.records, fresh.contexts, fresh.pages = [0] * 8, [], []
            self.stale += fresh.access(source, iova, write)[0] != phys

    def interrupt(self) -> None:
        draw = self.draw
        address = 0xFEE00000 | draw.randrange(9) << 5 | draw.choice([0x10, 0x10, 0x10, 0x18, 0, 0x14])
        data = draw.choice([0, 1, 2, 0x10001])
        source = draw.choice(SOURCES)
        what, fault = self.r.unit.remap(source, address, data, 0)
        expected, reason = self.m.interrupt(source, address, data)
        assert ("as it is" if what is None and not fault else what, fault) == (expected, reason), (
            f"source {source:#x}, {address:#x} {data:#x}"
        )
        self.reasons.add(reason)

    def service(self) -> None:
        if self.draw.random() < 0.5:
            which = self.draw.randrange(8)
            self.r.w(0x200 + 16 * which + 12, 1 << 31)
            self.m.records[which] &= (1 << 127) - 1
        else:
            self.r.w(0x34, 1)
            self.m.overflow = False

    def step(self) -> None:
        self.draw.choices(
            [self.mutate, self.command, self.invalidate, self.access, self.interrupt, self.service],
            [12, 2, 4, 60, 10, 6],
        )[0]()
        records = [self.r.r(0x200 + 16 * i, 8) | self.r.r(0x208 + 16 * i, 8) << 64 for i in range(8)]
        assert records == self.m.records
        status = self.r.r(0x34)
        assert (bool(status & 1), bool(status & 2)) == (self.m.overflow, any(x >> 127 for x in records))
        assert self.r.r(0x80, 8) == self.r.r(0x88, 8) or not self.queue


REASONS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xA, 0xB, 0xC, 0xE, 0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0xFF}


def test_random_programs_agree_with_the_second_model() -> None:
    reasons: set[int] = set()
    compared = stale = 0
    for seed in range(40):
        both = Both(seed)
        for step in range(600):
            try:
                both.step()
            except AssertionError as e:
                raise AssertionError(f"seed {seed}, step {step}: {e}") from None
        reasons |= both.reasons
        compared += both.compared
        stale += both.stale
    assert reasons == REASONS, "the programs do not reach what they are for"
    assert compared > 10_000 and stale > 500, (compared, stale)


@pytest.mark.parametrize("seed", range(8))
def test_a_restored_unit_goes_on_alike(seed: int) -> None:
    """Its state through a file, in the middle of a random program, with filled caches."""
    both = Both(1000 + seed)
    for _ in range(300):
        both.step()
    while not (both.r.unit.s.pages and both.r.unit.s.contexts and both.r.unit.s.entries):
        both.step()
    state = json.loads(json.dumps(both.r.unit.state(), sort_keys=True))
    both.r.unit.reset(0)
    both.r.unit.load(state)
    assert both.r.unit.state() == state
    for _ in range(300):
        both.step()


def test_a_state_is_a_copy() -> None:
    both = Both(5)
    for _ in range(300):
        both.step()
    before = both.r.unit.state()
    kept = plain(before)
    for _ in range(300):
        both.step()
    assert before == kept


@pytest.mark.parametrize("seed", range(6))
def test_damage_never_raises(seed: int) -> None:
    """Tables and registers full of noise, in places that are RAM and in places that are not."""
    draw = random.Random(seed)
    r = Remapping()
    for page in (ROOT, CONTEXTS, *TABLES, QUEUE, TABLE, STATUS):
        r.ram.put(page, draw.randbytes(4096))
        for _ in range(200):
            entry = draw.choice([ROOT, *TABLES, QUEUE]) | draw.randrange(256)
            r.ram.put64(page + 8 * draw.randrange(512), entry)
    offsets = [*range(0, 0x120, 4), *range(0x200, 0x280, 4)]
    pointers = [ROOT, TABLES[0], QUEUE, 0x8000_0000, HIGH, (1 << 64) - 0x1000, 1 << 51]
    faults = 0
    for _ in range(6000):
        what = draw.random()
        if what < 0.35:
            value = draw.choice([draw.getrandbits(64), draw.choice(pointers) | draw.randrange(4096)])
            r.w(draw.choice(offsets), value & 0xFFFF_FFFF, 4)
        elif what < 0.45:
            r.w(draw.choice(offsets) & ~7, draw.choice([draw.getrandbits(64), draw.choice(pointers)]), 8)
        elif what < 0.5:
            r.w(0x18, draw.choice([1 << 31, 1 << 31 | 1 << 30, 7 << 24 | 1 << 31, 1 << 26 | 1 << 31]))
            r.clear_faults()
        elif what < 0.9:
            iova = draw.choice([draw.getrandbits(64), draw.choice(IOVAS), draw.getrandbits(39)])
            size = draw.choice([1, 4, 4096, 9000])
            if draw.random() < 0.5:
                r.port.write(draw.randrange(1 << 16), iova, bytes(size), 0)
            else:
                assert len(r.port.read(draw.choice(SOURCES), iova, size, 0)) == size
        else:
            r.port.message(draw.choice(SOURCES), 0xFEE00000 | draw.getrandbits(20), draw.getrandbits(32), 0)
        faults += bool(r.r(0x34) & 3)
    assert faults > 100
    assert r.bus.delivered is not None
