"""The page cache on the host, against plain Python: the tree of folios, and files in memory, by any sequence
of calls, any allocation of which fails now and then.

A call that wanted memory and got none answers so, or makes do without; it changes nothing that it should not,
and loses no page. In the end every page is free again.
"""

from __future__ import annotations

import itertools

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.guest.mm_host import MIB, PAGE
from tests.guest.pagecache_host import PageCache, load

NOMEM, EXIST, INVAL, NOSPC, NXIO = -12, -17, -22, -28, -6
INDEX_MAX = 1 << 54
SEEK_DATA, SEEK_HOLE = 3, 4

failing = st.sampled_from((0, 0, 1, 2, 3, 4, 6))
"""which allocation of the call fails; 0: none"""
orders = st.sampled_from((0, 0, 1, 3, 8, 9, 10))
indices = st.builds(
    lambda base, offset: min(base + offset, (1 << 64) - 1),
    st.sampled_from((0, 0, 1 << 9, 1 << 18, 1 << 27, 1 << 36, 1 << 45, INDEX_MAX - 2048, 1 << 54, 1 << 63)),
    st.integers(0, 2047),
)


def failed(lib: PageCache, n: int) -> bool:
    """Whether the nth allocation happened, and failed. None fails any more."""
    done = lib.call("host_allocations")
    lib.fail(0)
    return 0 < n <= done


class Tree(RuleBasedStateMachine):
    """Folios by index: (order, number, address). A folio begins with its number, which moves with it."""

    @initialize()
    def begin(self) -> None:
        self.lib = load()
        self.lib.fresh()
        self.free = self.lib.free_pages
        self.numbers = itertools.count(1)
        self.there: dict[int, tuple[int, int, int]] = {}

    def _covering(self, index: int) -> int | None:
        """Where the folio begins that has the page."""
        return next((i for i, (order, _, _) in self.there.items() if i <= index < i + (1 << order)), None)

    def _check(self) -> None:
        lib = self.lib
        found = [(i, order, number) for _, i, order, number in lib.walk(0, (1 << 64) - 1)]
        right = [(i, order, number) for i, (order, number, _) in sorted(self.there.items())]
        assert found == right, f"in the tree: {found}, right is {right}"
        pages = sum(1 << order for _, order, _ in right)
        counted = lib.call("host_tree_pages")
        assert counted == pages, f"{counted} pages are counted, {pages} are there"
        if not right:
            assert lib.free_pages == self.free, "nodes of an empty tree are lost"

    @rule(order=orders, index=indices, aligned=st.booleans(), n=failing)
    def add(self, order: int, index: int, aligned: bool, n: int) -> None:
        index = index >> order << order if aligned else index
        end, number = index + (1 << order), next(self.numbers)
        folio = self.lib.call("host_folio", order, number) & ((1 << 64) - 1)
        if not folio:
            return
        self.lib.fail(n)
        answer = self.lib.error("host_add", folio, index)
        no_memory = failed(self.lib, n)
        wrong = index % (1 << order) or end > INDEX_MAX
        taken = any(i < end and index < i + (1 << o) for i, (o, _, _) in self.there.items())
        right = INVAL if wrong else NOMEM if no_memory else EXIST if taken else 0
        assert answer == right, f"{answer} instead of {right}"
        self.lib.call("host_put", folio)
        if not answer:
            self.there[index] = (order, number, folio)
        self._check()

    @rule(index=indices)
    def remove(self, index: int) -> None:
        at = self._covering(index)
        found = self.lib.call("host_find", index) & ((1 << 64) - 1)
        assert found == (self.there[at][2] if at is not None else 0)
        if at is not None:
            self.lib.call("host_remove", found)
            del self.there[at]
        self._check()

    @rule(index=indices, n=failing)
    def migrate(self, index: int, n: int) -> None:
        at = self._covering(index)
        if at is None:
            return
        order, number, folio = self.there[at]
        self.lib.fail(n)
        answer = self.lib.error("host_migrate", folio)
        if failed(self.lib, n):
            assert answer == NOMEM
        elif answer != NOMEM:  # as can be, for a large one
            assert answer == 0
            moved = self.lib.call("host_find", index) & ((1 << 64) - 1)
            assert moved != folio
            self.there[at] = (order, number, moved)
        self._check()

    @rule(index=indices)
    def look(self, index: int) -> None:
        following = [i for i, (order, _, _) in sorted(self.there.items()) if i + (1 << order) > index]
        found = self.lib.call("host_next", index) & ((1 << 64) - 1)
        assert found == (self.there[following[0]][2] if following else 0)
        end = index + 1024
        inside = [self.there[i][2] for i in following if i < end]
        assert [folio for folio, _, _, _ in self.lib.walk(index, end)] == inside

    @rule(index=indices, n=failing)
    def truncate(self, index: int, n: int) -> None:
        at = self._covering(index)
        self.lib.fail(n)
        self.lib.call("host_truncate", index)
        no_memory = failed(self.lib, n)
        if at is not None and at < index and not no_memory:
            _, number, folio = self.there.pop(at)
            for i in range(at, index):
                page = folio if i == at else self.lib.call("host_find", i) & ((1 << 64) - 1)
                self.there[i] = (0, number if i == at else 0, page)
        self.there = {i: it for i, it in self.there.items() if i < index}
        self._check()

    def teardown(self) -> None:
        if hasattr(self, "lib"):
            self.there.clear()
            self.lib.call("host_truncate", 0)
            self._check()
            self.lib.call("check_free_lists")


positions = st.builds(
    lambda base, offset: base + offset,
    st.sampled_from((0, 2 * MIB - 4096, 2 * MIB, 4 * MIB - 100)),
    st.integers(0, 20000),
)


class File(RuleBasedStateMachine):
    """A file in memory, and its contents."""

    @initialize()
    def begin(self) -> None:
        self.lib = load()
        self.lib.fresh()
        self.lib.call("host_evict")
        self.free = self.lib.free_pages
        assert self.lib.error("host_new") == 0
        self.data = bytearray()

    def _check(self) -> None:
        """Contents, and where the file says that it has some: what is elsewhere is zero."""
        lib, size = self.lib, len(self.data)
        assert lib.call("host_size") == size
        same = lib.read_file(size + 10, 0) == bytes(self.data)
        assert same, "other contents"
        at = 0
        while at < size:
            start = lib.call("host_seek", at, SEEK_DATA)
            stop = lib.call("host_seek", start, SEEK_HOLE) if start >= 0 else size
            assert start == NXIO or at <= start < stop <= size
            hole = self.data[at : start if start >= 0 else size]
            assert hole.count(0) == len(hole), "data in a hole"
            at = stop

    @rule(pos=positions, size=st.integers(1, 20000), byte=st.integers(1, 255), n=failing)
    def write(self, pos: int, size: int, byte: int, n: int) -> None:
        data = bytes([byte]) * size
        self.lib.fail(n)
        answer = self.lib.write_file(data, pos)
        if failed(self.lib, n):
            assert answer == NOMEM or 0 < answer <= size
        else:
            assert answer == size
        if answer > 0:
            self.data.extend(bytes(max(0, pos + answer - len(self.data))))
            self.data[pos : pos + answer] = data[:answer]
        self._check()

    @rule(size=positions, n=failing)
    def resize(self, size: int, n: int) -> None:
        self.lib.fail(n)
        assert self.lib.error("host_resize", size) == 0, "cutting a file needs no memory"
        failed(self.lib, n)
        self.data = self.data[:size] + bytes(max(0, size - len(self.data)))
        self._check()

    @rule(pos=positions, size=st.integers(1, 3 * MIB))
    def punch(self, pos: int, size: int) -> None:
        assert self.lib.error("host_fallocate", 3, pos, size) == 0
        end = min(pos + size, len(self.data))
        self.data[pos:end] = bytes(max(0, end - pos))
        self._check()

    @rule(keep=st.booleans(), pos=positions, size=st.integers(1, 30000), n=failing)
    def allocate(self, keep: bool, pos: int, size: int, n: int) -> None:
        self.lib.fail(n)
        answer = self.lib.error("host_fallocate", int(keep), pos, size)
        assert answer == 0 or (failed(self.lib, n) and answer == NOSPC)
        self.lib.fail(0)
        if not answer and not keep:
            self.data.extend(bytes(max(0, pos + size - len(self.data))))
        self._check()

    @rule(n=failing | st.integers(1, 600))
    def pin(self, n: int) -> None:
        """All of it, outside scratch, or nothing."""
        self.lib.fail(n)
        answer = self.lib.error("host_pin")
        no_memory = failed(self.lib, n)
        _, pinned, _ = self.lib.file_state()
        if answer:
            assert no_memory and answer == NOMEM and pinned == 0
        else:
            assert pinned >= -(-len(self.data) // PAGE)
            if not no_memory:
                assert self.lib.error("host_pin") == 0
        self._check()
        self.lib.call("host_unpin")
        assert self.lib.file_state()[1] == 0

    @rule(on=st.booleans())
    def huge(self, on: bool) -> None:
        self.lib.call("host_huge", on)

    def teardown(self) -> None:
        if hasattr(self, "lib"):
            self.lib.call("host_evict")
            assert self.lib.free_pages == self.free, "pages of a file that is gone are lost"
            self.lib.call("check_free_lists")


PHASES = (Phase.generate, Phase.shrink)


def test_the_tree_of_a_files_pages() -> None:
    run_state_machine_as_test(Tree, settings=settings(max_examples=80, stateful_step_count=50, phases=PHASES))


def test_a_file_in_memory() -> None:
    run_state_machine_as_test(File, settings=settings(max_examples=80, stateful_step_count=30, phases=PHASES))
