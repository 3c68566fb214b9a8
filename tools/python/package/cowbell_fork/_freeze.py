"""The walk, driven step by step so that other threads get their turn and a terminal sees progress."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from typing import Any, Dict, Iterator, List, Tuple

from . import _native
from ._report import NotEntered, Report, TypeCount

#: Containers a step looks at: some milliseconds.
_STEP = 20_000

#: What was frozen, by its number: where it lies is recorded if copies are to be explained. Kept for good, as immortal objects are.
roots: Dict[int, object] = {}
#: Calls of :func:`freeze`.
calls = 0

#: Why an object is not entered, by the numbers that ``kinds.rs`` and ``python.rs`` use.
_WHY = {
    1: "a module: it leads to the whole program",
    2: "a function: it leads to the module it is defined in",
    3: "code or a frame: a running program",
    4: "a generator or coroutine: a running program",
    5: "a class: it is program; the classes of instances are made immortal, not what they hold",
    6: "an open file or socket: an immortal one would not be flushed or closed",
    7: "a logger: it leads to all loggers and their handlers",
    8: "a thread, lock or pool: it belongs to the running program",
}


def freeze(*roots: object, hashes: bool = True, dicts: bool = False) -> Report:
    """Makes everything that is reachable from ``roots`` immortal, in place, and calls ``gc.freeze()``.

    Call it once the data is complete and before the workers are forked. A child that reads the data, looks things
    up in it, iterates over it or runs the collector then writes nothing into it, and copies nothing.

    The walk stops at modules, functions, classes, code, frames, generators, open files, sockets, loggers, threads
    and locks: they lead out of the data into the program. The report names what was left out.

    Args:
        roots: the data: lists, dicts, sets, tuples, instances, numpy arrays of objects, and all that they hold.
        hashes: compute the hash of each str and bytes (and of each tuple, which keeps it from 3.14 on): the first
            ``hash()`` or lookup in a child would write it. No ``__hash__`` of yours is called.
        dicts: make the ``__dict__`` of each instance, for children that call ``vars``, ``pickle`` or ``deepcopy``
            on them: that would be written by the child. It takes 100 bytes or so for each.

    Returns:
        What was made immortal, by type; what was not entered and why; what children will still copy.

    Raises:
        Unsupported: this interpreter cannot do it: below 3.12 or above 3.15, free-threaded, debug, a subinterpreter.
            Nothing was changed.

    The data can be changed and used as before. Immortal objects are never freed, and no destructor of theirs runs,
    until the process ends: for a new data set, start a new process that forks workers. Objects that are put into the
    data later are ordinary ones; another call of ``freeze`` finds them.

    Other threads run between the steps of the walk, each some milliseconds long, or as long as the largest single
    container takes. What they add to a container after it was looked at stays mortal.
    """
    native = _native.library()
    started = time.monotonic()
    walk = native.cowbell_fork_walk(int(hashes), int(dicts))
    was_enabled = gc.isenabled()
    # The collector would look at all that was already moved, again and again.
    gc.disable()
    try:
        for stop, why in stops():
            native.cowbell_fork_stop_at(walk, stop, why)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            native.cowbell_fork_ask_about(walk, numpy.ndarray)
        notes = _run(native, walk, roots, started)
        report = _report(native, walk, notes, hashes, dicts, time.monotonic() - started)
        _remember(native, roots)
    finally:
        native.cowbell_fork_end(walk)
        if was_enabled:
            gc.enable()
    gc.freeze()
    # There is nothing left for it to look at, but it empties the free lists: a child's collector would, page by page.
    gc.collect()
    return report


def _remember(native: Any, frozen: Tuple[object, ...]) -> None:
    global calls
    calls += 1
    roots.update((id(root), root) for root in frozen if native.cowbell_fork_is_immortal(root))


def stops() -> Iterator[Tuple[type, int]]:
    """Types that lead out of the data, of modules that are loaded: others have no instances."""
    for module, name, why in (
        ("io", "IOBase", 6),
        ("_io", "_IOBase", 6),
        ("_socket", "socket", 6),
        ("logging", "Filterer", 7),
        ("threading", "Thread", 8),
        ("_thread", "LockType", 8),
        ("_thread", "RLock", 8),
        ("concurrent.futures", "Executor", 8),
        ("multiprocessing.process", "BaseProcess", 8),
        ("multiprocessing.pool", "Pool", 8),
    ):
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type):
            yield found, why


def _run(native: Any, walk: Any, roots: Tuple[object, ...], started: float) -> List[str]:
    """Walks to the end; returns what to say about arrays."""
    progress = _Progress(started)
    strange = 0
    for root in roots:
        native.cowbell_fork_reach(walk, root)
    while True:
        while native.cowbell_fork_step(walk, _STEP):
            progress.show(native, walk)
        address = native.cowbell_fork_asked(walk)
        if address is None:
            break
        strange += not reach_array(native, walk, _native.at_address(address))
    progress.clear()
    return [f"{strange:,} numpy arrays of records with objects in them were not entered."] if strange else []


def reach_array(native: Any, walk: Any, array: Any) -> bool:
    """Reaches the objects in a numpy array; ``False`` if there are some that cannot be told."""
    if not array.dtype.hasobject:
        return True
    if array.dtype != object:
        return False
    if array.flags.c_contiguous or array.flags.f_contiguous:
        native.cowbell_fork_reach_array(walk, array.__array_interface__["data"][0], array.size)
    else:
        for item in array.flat:
            native.cowbell_fork_reach(walk, item)
    return True


class _Progress:
    """A line on a terminal, for walks that take more than a second."""

    def __init__(self, started: float) -> None:
        self._next = started + 1.0
        self._shown = False
        self._stream = sys.stderr

    def show(self, native: Any, walk: Any) -> None:
        now = time.monotonic()
        if now < self._next or self._stream is None or not self._stream.isatty():
            return
        totals = _native.Totals()
        native.cowbell_fork_totals(walk, ctypes.byref(totals))
        self._stream.write(f"\rcowbell_fork.freeze: {totals.objects:,} objects made immortal")
        self._stream.flush()
        self._shown = True
        self._next = now + 0.2

    def clear(self) -> None:
        if self._shown and self._stream is not None:
            self._stream.write("\r\033[K")
            self._stream.flush()


def _name(of: Any) -> str:
    # A metaclass may answer anything, so it is not asked.
    module = type.__dict__["__module__"].__get__(of)
    name: str = type.__dict__["__qualname__"].__get__(of)
    return name if module == "builtins" or not isinstance(module, str) else f"{module}.{name}"


def _report(native: Any, walk: Any, notes: List[str], hashes: bool, dicts: bool, seconds: float) -> Report:
    totals = _native.Totals()
    native.cowbell_fork_totals(walk, ctypes.byref(totals))
    types: List[TypeCount] = []
    not_entered: List[NotEntered] = []
    finalizers: List[str] = []
    opaque: List[str] = []
    own_hash: List[str] = []
    for row, of in _rows(native, walk):
        name = _name(of)
        if row.left_out:
            not_entered.append(NotEntered(name, row.left_out, _WHY[row.why_not]))
        if not row.objects:
            continue
        types.append(TypeCount(name, row.objects, row.bytes))
        if row.marks & 1:
            finalizers.append(name)
        if row.marks & 2:
            opaque.append(name)
        if name in _KEEP_OWN_HASH:
            own_hash.append(name)
    if finalizers:
        notes.append(f"Finalizers that will never run: of {_some(finalizers)}.")
    if opaque:
        notes.append(f"Made immortal without looking inside, where they show nothing: {_some(opaque)}.")
    return Report(
        objects=totals.objects,
        bytes=totals.bytes,
        types=tuple(sorted(types, key=lambda t: (-t.bytes, t.name))),
        not_entered=tuple(sorted(not_entered, key=lambda n: (-n.references, n.name))),
        hashes=totals.hashes,
        dicts=totals.dicts,
        already=totals.already,
        still_copies=tuple(_still_copies(totals, not_entered, own_hash)),
        notes=tuple(notes),
        seconds=seconds,
    )


#: Types written in C that keep their hash once it was asked for, and compute it by more than their own bytes.
_KEEP_OWN_HASH = {
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "memoryview",
    "weakref.ReferenceType",
}


def _still_copies(totals: _native.Totals, not_entered: List[NotEntered], own_hash: List[str]) -> Iterator[str]:
    if totals.unhashed_texts:
        yield f"hashes one of {totals.unhashed_texts:,} str or bytes for the first time: call freeze with hashes=True"
    if totals.unhashed_tuples:
        yield (
            f"hashes one of {totals.unhashed_tuples:,} tuples for the first time: what they hold has a __hash__ of its"
            " own or keeps none"
        )
    if own_hash:
        yield f"hashes, for the first time, one of these, which keep their hash: {_some(own_hash)}"
    if totals.without_dict:
        yield (
            f"asks one of {totals.without_dict:,} instances for its __dict__, if nobody asked before, as vars, pickle"
            " and deepcopy do: call freeze with dicts=True"
        )
    if totals.wide_texts:
        yield f"asks one of {totals.wide_texts:,} non-ASCII str for its UTF-8 form in C code for the first time"
    if totals.objects:
        yield "makes the first weak reference to an object, or changes one"
    if not_entered:
        yield f"uses what was not entered: {_some([n.name for n in not_entered])}"


def _some(names: List[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more types"


def _rows(native: Any, walk: Any) -> Iterator[Tuple[_native.Row, type]]:
    at = 0
    while True:
        row = _native.Row()
        if not native.cowbell_fork_row(walk, at, ctypes.byref(row)):
            return
        yield row, _native.at_address(row.of or 0)
        at += 1
