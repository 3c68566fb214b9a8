"""What a forked child copied, counted from within it."""

from __future__ import annotations

import ctypes
import os
import re
import types
from dataclasses import dataclass
from typing import Any, List, Optional, Tuple, Type, Union

from . import _causes, _freeze
from ._causes import Causes, Sums
from ._lines import Line, Watch
from ._native import Unsupported
from ._report import size_text


class NotCounted(RuntimeError):
    """Nothing is counted in this process: the message says why, and what to do."""

    __module__ = "cowbell_fork"


class CopiesExceeded(AssertionError):
    """More was copied than allowed. ``copied`` is what was counted."""

    __module__ = "cowbell_fork"

    def __init__(self, copied: Copied, max_bytes: int) -> None:
        super().__init__(copied, max_bytes)
        self.copied = copied
        self.max_bytes = max_bytes

    def __str__(self) -> str:
        return f"{size_text(self.copied.bytes)} copied, and {size_text(self.max_bytes)} allowed\n{self.copied}"


class Failure(ctypes.Structure):
    """Why the native part refused; see ``counter/src/exports.rs``."""

    kind: int
    errno: int
    _fields_ = [("kind", ctypes.c_int), ("errno", ctypes.c_int)]


class Counts(ctypes.Structure):
    """Bytes; ``counter/src/exports.rs`` has the meaning of each field."""

    copied: int
    unsure: int
    reused: int
    new: int
    gone: int
    shared: int
    before_max: int
    unwatched: int
    page: int
    is_foreign: int
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "copied",
            "unsure",
            "reused",
            "new",
            "gone",
            "shared",
            "before_max",
            "unwatched",
            "page",
            "is_foreign",
        )
    ]


class Place(ctypes.Structure):
    """A mapping with copies in it."""

    copied: int
    name: bytes
    _fields_ = [("copied", ctypes.c_uint64), ("name", ctypes.c_char * 256)]


@dataclass(frozen=True)
class Copied:
    """What a child copied, in bytes; each is a multiple of the page size.

    A page is *copied* when the child shared it as counting began and wrote it afterwards, or when the child wrote a page
    of a file that is mapped privately.
    """

    #: Copied.
    bytes: int
    #: Of these, pages that were perhaps reused and not copied, because the other side had given them up: only root
    #: can tell. 0 for root.
    unsure: int
    #: Shared when counting began, and written when nobody else had it any more: no copy.
    reused: int
    #: Memory that was not there when counting began: the child's own data.
    new: int
    #: Shared when counting began and not there any more: given back or moved. It may have been copied before.
    gone: int
    #: Shared when counting began: what could have been copied.
    shared: int
    #: At most so much was copied between the fork and the moment when counting began.
    before_max: int
    #: Mappings that cannot be watched, such as huge pages of hugetlbfs.
    unwatched: int
    #: Bytes a page.
    page_size: int
    #: Where: names of mappings, and bytes copied in each, the most first. Memory without a name is ``""``.
    places: Tuple[Tuple[str, int], ...]
    #: What the copied pages were written for, if ``count_copies(explain=True)`` was called before the fork.
    causes: Optional[Causes] = None

    @property
    def pages(self) -> int:
        """Pages copied."""
        return self.bytes // self.page_size

    def __str__(self) -> str:
        lines = [
            f"copied {self.pages:,} pages, {size_text(self.bytes)}, of the {size_text(self.shared)} that were shared;"
            f" {size_text(self.new)} of new memory"
        ]
        rows = [(size_text(copied), name or "memory without a name (objects, arrays)") for name, copied in self.places]
        width = max((len(size) for size, _ in rows), default=0)
        lines += [f"  {size:>{width}}  {name}" for size, name in rows[:5]]
        if len(rows) > 5:
            lines.append(f"  {size_text(sum(copied for _, copied in self.places[5:]))} in {len(rows) - 5} more mappings")
        if self.causes is not None:
            lines.append("by what was written on the pages:")
            lines += [f"  {line}" for line in str(self.causes).splitlines()]
        for amount, what in (
            (self.unsure, "of the copied pages were perhaps reused and not copied: only root can tell"),
            (self.gone, "that were shared are not there any more, and may have been copied before"),
            (self.unwatched, "of mappings that cannot be watched"),
            (self.before_max, "at most were copied before counting began"),
        ):
            if amount:
                lines.append(f"  {size_text(amount)} {what}")
        return "\n".join(lines)


def _declare(library: Any) -> Any:
    pointer, failure = ctypes.c_void_p, ctypes.POINTER(Failure)
    for name, result, arguments in (
        ("enable", ctypes.c_int, (failure,)),
        ("disable", None, ()),
        ("mine", pointer, (failure,)),
        ("after_fork", None, ()),
        ("read", pointer, (pointer, failure)),
        ("sum", None, (pointer, pointer, pointer, ctypes.POINTER(Counts))),
        ("place", ctypes.c_int, (pointer, pointer, ctypes.c_size_t, ctypes.POINTER(Place))),
        ("forget", None, (pointer,)),
        ("die_with_parent", None, ()),
        ("frozen_new", pointer, ()),
        ("frozen_add", None, (pointer, ctypes.c_uint8, ctypes.c_size_t, ctypes.c_size_t)),
        ("frozen_sort", ctypes.c_int, (pointer, failure)),
        ("frozen_look", ctypes.c_int64, (pointer, ctypes.c_size_t, failure)),
        ("frozen_keep", None, (pointer,)),
        ("frozen_drop", None, (pointer,)),
        ("causes", ctypes.c_int, (pointer, pointer, ctypes.POINTER(Sums), failure)),
    ):
        function = getattr(library, f"cowbell_count_{name}")
        function.restype = result
        function.argtypes = arguments
    return library


#: The native part, once :func:`count_copies` was called.
_library: Any = None
#: The process that asked for counting in its children.
_asked_by = 0


def library() -> Any:
    """The native part.

    Raises:
        Unsupported: it does not load here.
    """
    global _library
    if _library is None:
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libcowbell_count.so")
        try:
            # PyDLL holds the GIL over each call, so that two threads do not call at once.
            _library = _declare(ctypes.PyDLL(path))
        except OSError as error:
            raise Unsupported(f"the native part does not load: {error}", "install the wheel for this platform") from error
    return _library


def _refusal(failure: Failure) -> Exception:
    release = os.uname().release
    why = os.strerror(failure.errno)
    if failure.kind == 1:
        return Unsupported(
            f"Linux {release} cannot note writes without stopping the writer ({why})",
            "it takes Linux 6.7; `cowbell run` needs the same, `cowbell snapshot` does not",
        )
    if failure.kind == 2:
        return Unsupported(
            f"the call userfaultfd is refused ({why})",
            "where that is a container's seccomp profile, allow userfaultfd in it"
            " (docker run --security-opt seccomp=PROFILE)",
        )
    if failure.kind == 3:
        return NotCounted(
            "another userfaultfd watches the memory of this process: under `cowbell run`, choose --mode count"
        )
    if failure.kind == 4:
        return Unsupported(f"/proc/self cannot be read ({why})", "mount /proc")
    if failure.kind == 6:
        return NotCounted(
            "this process forked under `cowbell run`, which counts anew from there: its report has both parts"
        )
    return NotCounted(
        "what counted is gone: the descriptor of the userfaultfd was closed in this process, as programs do that close"
        " all descriptors; leave open those that /proc/self/fd shows as anon_inode:[userfaultfd]"
    )


def count_copies(*, explain: bool = False) -> None:
    """Has every process that is forked from now on count what it copies, for :func:`copied` and :func:`watch`.

    Call it before the workers are forked: with forkserver, in a module that is preloaded. Each child then arms the
    memory it shares (userfaultfd, ``WP_ASYNC``) before its first line of Python. Linux 6.7; any Python from 3.8 on, and no
    privilege. It costs each fork about 20 microseconds for each MiB that is shared (80 for root, who reads page frames as
    well), and each copied page up to a third of its time.

    Args:
        explain: have the children tell what the pages were written for that they copied (:attr:`Copied.causes`): arrays of
            frozen data, frozen objects, or holes between them. Call :func:`freeze` before, and nothing that changes the
            data between this call and the fork. It goes through the data once more, and keeps 4 bytes for 100 of it.

    Raises:
        Unsupported: the kernel is older, or refuses userfaultfd, as containers do.
        NotCounted: with ``explain``, nothing was frozen yet.
    """
    global _asked_by
    failure = Failure()
    if library().cowbell_count_enable(ctypes.byref(failure)):
        raise _refusal(failure)
    if explain:
        if not _freeze.roots:
            raise NotCounted("there is no frozen data by which copies could be explained: call cowbell_fork.freeze(data) before")
        if not _causes.record(_library, ctypes.byref(failure)):
            raise _refusal(failure)
    if not _asked_by:
        os.register_at_fork(after_in_parent=_library.cowbell_count_after_fork)
    _asked_by = os.getpid()


class _Reading:
    """What the page tables said at one moment."""

    def __init__(self, counter: int) -> None:
        failure = Failure()
        self.counter = counter
        self.pointer = _library.cowbell_count_read(counter, ctypes.byref(failure))
        if not self.pointer:
            raise _refusal(failure)

    def __del__(self, forget: Any = None) -> None:
        if self.pointer:
            _library.cowbell_count_forget(self.pointer)
            self.pointer = None


def _now(is_own: bool = False) -> _Reading:
    """A reading of this child; ``is_own``: it was forked by this package, which asked for counting in it alone."""
    if not _asked_by and not is_own:
        raise NotCounted("call cowbell_fork.count_copies() before this process is forked (forkserver: in a preloaded module)")
    failure = Failure()
    counter = _library.cowbell_count_mine(ctypes.byref(failure))
    if counter:
        return _Reading(counter)
    if failure.kind:
        raise _refusal(failure)
    raise NotCounted("this process was not forked since count_copies() was called: call copied() in a child")


def _sum(reading: _Reading, earlier: Optional[_Reading]) -> Copied:
    before = earlier.pointer if earlier else None
    counts, places = Counts(), []  # type: Counts, List[Tuple[str, int]]
    _library.cowbell_count_sum(reading.counter, reading.pointer, before, ctypes.byref(counts))
    place = Place()
    while _library.cowbell_count_place(reading.pointer, before, len(places), ctypes.byref(place)):
        places.append((place.name.decode(errors="replace"), place.copied))
    sums, failure = Sums(), Failure()
    known = _library.cowbell_count_causes(reading.pointer, before, ctypes.byref(sums), ctypes.byref(failure))
    if known < 0:
        raise _refusal(failure)
    return Copied(
        bytes=counts.copied,
        unsure=counts.unsure,
        reused=counts.reused,
        new=counts.new,
        gone=counts.gone,
        shared=counts.shared,
        before_max=counts.before_max,
        unwatched=counts.unwatched,
        page_size=counts.page,
        places=tuple(places),
        causes=_causes.causes(sums) if known else None,
    )


def copied() -> Copied:
    """What this child copied since it was forked.

    Reading it costs a walk over the page tables, some 40 microseconds for each MiB that is shared, and nothing between two calls.
    Memory that was given back by ``madvise`` and used again counts as copied.

    Raises:
        NotCounted: :func:`count_copies` was not called before the fork, or this is not a child.
        Unsupported: this kernel or container cannot count.
    """
    return _sum(_now(), None)


class watch:
    """Counts what a block copies, in a child of a process that called :func:`count_copies`::

        with cowbell_fork.watch() as block:
            work(data)
        print(block.copied)

    With ``max_bytes`` (a number, or a text like ``"2 MB"``) the end of the block raises :class:`CopiesExceeded` if it copied more.

    With ``lines``, :attr:`lines` names the lines of code. The kernel notes *which* pages were written and not by whom, so the
    command ``cowbell`` of this package attaches to this process for the length of the block, and takes the stack at some of
    the pages; why it can tell none stands in :attr:`lines_unknown`, and is no error. Beginning and ending take a quarter of a second
    together, and more where much memory is shared; a loop that does nothing but copy pages takes three times as long.

    Raises:
        NotCounted, Unsupported: as :func:`copied`.
    """

    #: What the block copied, once it has ended.
    copied: Copied
    #: The lines that copied the most pages first, once the block has ended: with ``lines``, and where that can be told.
    lines: Tuple[Line, ...] = ()
    #: Why :attr:`lines` is empty, in a sentence that says what to do; ``None`` where it is not.
    lines_unknown: Optional[str] = "lines were not asked for: watch(lines=True)"

    def __init__(
        self, max_bytes: Union[int, str, None] = None, *, lines: bool = False, _of_this_child: bool = False
    ) -> None:
        self._max_bytes = None if max_bytes is None else parse_size(max_bytes)
        self._is_own = _of_this_child
        self._with_lines = lines
        self._tool: Optional[Watch] = None

    def __enter__(self) -> watch:
        if self._with_lines:
            # Not where nothing is counted.
            _now(self._is_own)
            self._tool = Watch()
        # The first reading writes pages of its own, which are not the block's.
        _sum(_now(self._is_own), _now(self._is_own))
        self._earlier = _now(self._is_own)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[types.TracebackType],
    ) -> None:
        try:
            self.copied = _sum(_now(self._is_own), self._earlier)
        finally:
            if self._tool is not None:
                self.lines, self.lines_unknown = self._tool.end(), self._tool.unknown
                self._tool = None
        if kind is None and self._max_bytes is not None and self.copied.bytes > self._max_bytes:
            raise CopiesExceeded(self.copied, self._max_bytes)


def assert_copies(max_bytes: Union[int, str]) -> Copied:
    """Checks that this child copied no more than this since it was forked; returns what it copied.

    Args:
        max_bytes: a number, or a text like ``"2 MB"`` (1 KB is 1024 bytes).

    Raises:
        CopiesExceeded: an ``AssertionError`` whose text is the report.
        NotCounted, Unsupported: as :func:`copied`.
    """
    limit = parse_size(max_bytes)
    found = copied()
    if found.bytes > limit:
        raise CopiesExceeded(found, limit)
    return found


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(size: Union[int, str]) -> int:
    """Bytes, of a number or of a text like ``"2 MB"`` or ``"1.5 MiB"``."""
    if isinstance(size, int) and not isinstance(size, bool):
        bytes_ = size
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", size, re.I) if isinstance(size, str) else None
        if not match:
            raise ValueError(f"{size!r} is no size: give bytes, or a text like '2 MB'")
        bytes_ = int(float(match[1]) * _UNITS[match[2].upper()])
    if bytes_ < 0:
        raise ValueError(f"{size!r} is no size: it is negative")
    return bytes_
