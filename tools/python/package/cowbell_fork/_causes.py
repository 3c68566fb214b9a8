"""Where frozen data lies, recorded before the fork: by it a child tells what the pages were written for that it copied."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any, Iterator, List, Tuple

from . import _freeze, _native
from ._native import Unsupported
from ._report import size_text

#: Containers, and blocks of 4 KiB, that a step looks at: some milliseconds.
_STEP = 20_000
_OBJECT, _ARRAY = 0, 1


@dataclass(frozen=True)
class Causes:
    """What copied pages were written for, in bytes: each page is in one of the first five, and together they are all.

    What lies on a page is known from the data as it was frozen when ``count_copies(explain=True)`` was called, and what
    changed there from its content since then.
    """

    #: Bytes of frozen arrays changed, and none of frozen objects: the items of lists, the tables of dicts and sets, numpy's
    #: and bytearrays' content. Pages that such an array has to itself are here if they were written with what they had, too.
    arrays: int
    #: Bytes of frozen objects changed (arrays on the same page perhaps as well): a header or a value in it.
    objects: int
    #: All frozen bytes are as they were, and others beside them changed: holes that new objects fill, or objects that are
    #: not frozen.
    holes: int
    #: Nothing changed: the page was written with what it had, and more than one of these lies on it.
    undecided: int
    #: No frozen data lies on the page.
    elsewhere: int
    #: Bytes of all pages on which frozen data lies, copied or not.
    frozen: int
    #: Calls of :func:`freeze` since: what they froze counts as not frozen.
    later: int

    def __str__(self) -> str:
        rows = [
            (self.arrays, "arrays of frozen data changed: items of lists, tables of dicts and sets"),
            (self.objects, "frozen objects changed: a header, or a value in them"),
            (self.holes, "beside frozen data that is as it was: new objects in holes, or objects that are not frozen"),
            (self.undecided, "written with what was there before: which of these cannot be told"),
            (self.elsewhere, "where no frozen data lies"),
        ]
        sizes = [(size_text(amount), what) for amount, what in rows if amount]
        width = max((len(size) for size, _ in sizes), default=0)
        lines = [f"{size:>{width}}  {what}" for size, what in sizes]
        if self.later:
            lines.append("what was frozen after count_copies(explain=True) counts as not frozen: call it again")
        return "\n".join(lines)


class Sums(ctypes.Structure):
    """Bytes; see ``counter/src/frozen.rs``."""

    arrays: int
    objects: int
    holes: int
    undecided: int
    elsewhere: int
    frozen: int
    _fields_ = [
        (name, ctypes.c_uint64) for name in ("arrays", "objects", "holes", "undecided", "elsewhere", "frozen")
    ]


#: Calls of :func:`freeze` when the data was recorded last, and when what this process inherited was.
_recorded_at = 0
_inherited_at = 0


def _inherit() -> None:
    global _inherited_at
    _inherited_at = _recorded_at


os.register_at_fork(after_in_child=_inherit)


def record(counter: Any, failure: Any) -> bool:
    """Has the counter know where frozen data lies, and what it is made of. Returns whether that was possible.

    Raises:
        Unsupported: this interpreter lays its objects out in another way.
    """
    global _recorded_at
    native = _native.library()
    calls = _freeze.calls
    tables = counter.cowbell_count_frozen_new()
    left = -1
    try:
        _self_test(native)
        _walk(native, ctypes.cast(counter.cowbell_count_frozen_add, ctypes.c_void_p), tables, list(_freeze.roots.values()))
        if not counter.cowbell_count_frozen_sort(tables, failure):
            left = 1
        while left > 0:
            left = counter.cowbell_count_frozen_look(tables, _STEP, failure)
    finally:
        if left == 0:
            counter.cowbell_count_frozen_keep(tables)
            _recorded_at = calls
        else:
            counter.cowbell_count_frozen_drop(tables)
    return left == 0


def _walk(native: Any, tell: Any, to: Any, roots: List[object]) -> None:
    walk = native.cowbell_fork_where(tell, to)
    try:
        for stop, why in _freeze.stops():
            native.cowbell_fork_stop_at(walk, stop, why)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            native.cowbell_fork_ask_about(walk, numpy.ndarray)
        for root in roots:
            native.cowbell_fork_reach(walk, root)
        call = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint8, ctypes.c_size_t, ctypes.c_size_t)(tell.value)
        while True:
            while native.cowbell_fork_step(walk, _STEP):
                pass
            address = native.cowbell_fork_asked(walk)
            if address is None:
                return
            array = _native.at_address(address)
            _freeze.reach_array(native, walk, array)
            if array.flags.owndata and (array.flags.c_contiguous or array.flags.f_contiguous):
                call(to, _ARRAY, array.__array_interface__["data"][0], array.nbytes)
    finally:
        native.cowbell_fork_end(walk)


def _self_test(native: Any) -> None:
    """Compares the pieces of objects with the sizes that the interpreter says of them."""
    found: List[Tuple[int, int, int]] = []
    callback = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint8, ctypes.c_size_t, ctypes.c_size_t)
    tell = callback(lambda to, kind, at, size: found.append((kind, at, size)))
    for sample in _samples():
        del found[:]
        walk = native.cowbell_fork_where(ctypes.cast(tell, ctypes.c_void_p), None)
        native.cowbell_fork_reach(walk, sample)
        native.cowbell_fork_end(walk)
        pieces = [(kind, at, size) for kind, at, size in found if at]
        sizes = sum(size for _, _, size in pieces)
        # A str's UTF-8 form is not in the one, the values of an instance are not in the other.
        if sizes != sys.getsizeof(sample) or not any(at <= id(sample) < at + size for _, at, size in pieces):
            raise Unsupported(
                f"this build of CPython {sys.version.split()[0]} lays its {type(sample).__name__} out in another way",
                f"report it with the output of `{sys.executable} -VV`; count without explain=True",
            )


#: Made once: immortal objects stay.
_made: List[object] = []


def _samples() -> Iterator[object]:
    if not _made:
        small: List[object] = [
            [1, 2, 3], {"a": 1}, {1: 2}, {f"{n}": n for n in range(1000)}, {n: n for n in range(70_000)}, set(), {1, 2},
            set(range(1000)), frozenset(range(40)), bytearray(b"x" * 1000), (1, 2), "a" * 50, "\u0101" * 50, b"b" * 50, 1 << 100, 1.5,
        ]  # fmt: skip
        walk = _native.library().cowbell_fork_walk(0, 0)
        for sample in small:
            _native.library().cowbell_fork_reach(walk, sample)
        _native.library().cowbell_fork_end(walk)
        _made.extend(small)
    return iter(_made)


def causes(sums: Sums) -> Causes:
    """The sums as a value."""
    return Causes(
        sums.arrays, sums.objects, sums.holes, sums.undecided, sums.elsewhere, sums.frozen, _freeze.calls - _inherited_at
    )
