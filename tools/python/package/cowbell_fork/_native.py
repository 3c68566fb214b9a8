"""The native part: whether it may be used in this interpreter, and its functions as ctypes sees them."""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from typing import Any, Optional

from . import __version__

#: Versions whose layout was looked at. Another one is refused, not guessed.
KNOWN = ((3, 12), (3, 13), (3, 14), (3, 15))

_OTHERWISE = (
    "keep the data in few large objects instead: numpy arrays of numbers, Arrow, or one bytes object and offsets"
)


class Unsupported(RuntimeError):
    """This interpreter cannot make objects immortal in place.

    ``reason`` says why, ``remedy`` what to do.
    """

    __module__ = "cowbell_fork"

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


class Totals(ctypes.Structure):
    """What a walk did; ``walk.rs`` has the meaning of each field."""

    objects: int
    bytes: int
    already: int
    hashes: int
    unhashed_texts: int
    unhashed_tuples: int
    wide_texts: int
    without_dict: int
    dicts: int
    classes: int
    left: int
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "objects",
            "bytes",
            "already",
            "hashes",
            "unhashed_texts",
            "unhashed_tuples",
            "wide_texts",
            "without_dict",
            "dicts",
            "classes",
            "left",
        )
    ]


class Row(ctypes.Structure):
    """What became of the instances of one type; see ``exports.rs``."""

    of: Optional[int]
    objects: int
    bytes: int
    left_out: int
    why_not: int
    marks: int
    _fields_ = [
        ("of", ctypes.c_void_p),
        ("objects", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("left_out", ctypes.c_uint64),
        ("why_not", ctypes.c_uint64),
        ("marks", ctypes.c_uint64),
    ]


class Probe(ctypes.Structure):
    """What was read of one object; see ``exports.rs``."""

    word: int
    is_immortal: int
    of: int
    kept_hash: int
    _fields_ = [
        ("word", ctypes.c_uint64),
        ("is_immortal", ctypes.c_uint64),
        ("of", ctypes.c_uint64),
        ("kept_hash", ctypes.c_int64),
    ]


def _refusal() -> Optional[Unsupported]:
    """Why this build of Python is refused before anything of it is read."""
    version = sys.version_info[:2]
    name = "%d.%d" % version
    if sys.implementation.name != "cpython":
        return Unsupported(f"this is {sys.implementation.name}, not CPython", "use CPython 3.12 to 3.15")
    if version < KNOWN[0]:
        return Unsupported(
            f"CPython {name} counts references to every object: there are no immortal objects before 3.12",
            f"use CPython 3.12 to 3.15, or {_OTHERWISE}",
        )
    if version not in KNOWN:
        return Unsupported(
            f"the layout of objects in CPython {name} is not known to cowbell-fork {__version__}",
            "upgrade it (pip install --upgrade cowbell-fork), or use CPython 3.12 to 3.15",
        )
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return Unsupported(
            "this is a free-threaded build, which lays its objects out in another way",
            f"use the ordinary build (python{name}, not python{name}t), or {_OTHERWISE}",
        )
    if hasattr(sys, "gettotalrefcount") or hasattr(sys, "getobjects"):
        return Unsupported(
            "this is a debug build, which aborts on a str that was made immortal",
            f"use the ordinary build of python{name}",
        )
    if sys.maxsize != 2**63 - 1 or sys.byteorder != "little":
        return Unsupported("this is not a 64-bit little-endian build", "use a 64-bit build")
    if not sys.platform.startswith("linux"):
        return Unsupported(f"this is {sys.platform}", "use Linux: nothing else was tested")
    return None


def _declare(library: Any) -> Any:
    """Gives the functions of the library their types."""
    walk, obj = ctypes.c_void_p, ctypes.py_object
    for name, result, arguments in (
        ("probe", ctypes.c_int, (obj, ctypes.POINTER(Probe))),
        ("walk", walk, (ctypes.c_int, ctypes.c_int)),
        ("where", walk, (ctypes.c_void_p, ctypes.c_void_p)),
        ("is_immortal", ctypes.c_int, (obj,)),
        ("stop_at", None, (walk, obj, ctypes.c_uint8)),
        ("ask_about", None, (walk, obj)),
        ("reach", None, (walk, obj)),
        ("reach_array", None, (walk, ctypes.c_void_p, ctypes.c_size_t)),
        ("step", ctypes.c_uint64, (walk, ctypes.c_size_t)),
        ("asked", ctypes.c_void_p, (walk,)),
        ("totals", None, (walk, ctypes.POINTER(Totals))),
        ("row", ctypes.c_int, (walk, ctypes.c_size_t, ctypes.POINTER(Row))),
        ("end", None, (walk,)),
    ):
        function = getattr(library, f"cowbell_fork_{name}")
        function.restype = result
        function.argtypes = arguments
    return library


def at_address(address: int) -> Any:
    """The object at an address that the native part gave."""
    return ctypes.cast(ctypes.c_void_p(address), ctypes.py_object).value


def probe(library: Any, of: object) -> Probe:
    """Reads an object the native way."""
    out = Probe()
    status = library.cowbell_fork_probe(of, ctypes.byref(out))
    if status == -2:
        raise Unsupported(
            "this is a subinterpreter, whose memory goes when it ends, immortal or not",
            "freeze in the main interpreter",
        )
    if status:
        raise Unsupported("the native part does not know this version", "use CPython 3.12 to 3.15")
    return out


def _self_test(library: Any) -> None:
    """Compares what the native part reads and writes with what the interpreter says of the same objects."""

    def expect(fact: bool, what: str) -> None:
        if not fact:
            raise Unsupported(
                f"this build of CPython {sys.version.split()[0]} lays its objects out in another way: {what}",
                f"report it with the output of `{sys.executable} -VV`, or {_OTHERWISE}",
            )

    # Objects nobody else has: constants of the code may be immortal by themselves.
    text, number = "-".join(["cowbell", str(id(library))]), 1 << 80 | id(library)
    data = text.encode()
    fresh: tuple[object, ...] = (text, data, number, [number, text], {text: number}, {number}, (text, number))
    for item in fresh:
        seen = probe(library, item)
        expect(seen.of == id(type(item)), "the type is elsewhere")
        expect(not seen.is_immortal, "a new object looks immortal")
        counted = seen.word & 0xFFFFFFFF
        more = [item] * 1000
        grown = probe(library, item).word & 0xFFFFFFFF
        del more
        expect(grown - counted == 1000, "the count of references is elsewhere")
    expect(bool(probe(library, None).is_immortal), "None does not look immortal")
    for hashable in (text, data) if sys.version_info < (3, 14) else (text, data, (text, number)):
        value = hash(hashable)
        expect(probe(library, hashable).kept_hash == value, "a hash is kept elsewhere")
    _try_to_freeze(library, expect)


def _try_to_freeze(library: Any, expect: Any) -> None:
    """Makes one small object immortal, and sees whether the interpreter takes it for that."""
    mortal = [[]]  # type: list[object]
    walk = library.cowbell_fork_walk(0, 0)
    expect(bool(walk), "the version is not known")
    library.cowbell_fork_reach(walk, mortal)
    library.cowbell_fork_step(walk, 10)
    totals = Totals()
    library.cowbell_fork_totals(walk, ctypes.byref(totals))
    library.cowbell_fork_end(walk)
    expect(totals.objects == 2, "a list in a list is not two objects")
    expect(totals.bytes == sys.getsizeof(mortal) + sys.getsizeof(mortal[0]), "a list's size is elsewhere")
    before = probe(library, mortal).word
    more = [mortal] * 1000
    expect(probe(library, mortal).word == before, "an immortal object's references are counted")
    del more
    is_immortal = getattr(sys, "_is_immortal", None)
    if is_immortal is not None:
        expect(bool(is_immortal(mortal)), "the interpreter does not take an immortal object for one")


def _load() -> Any:
    """The native part, tested against this interpreter."""
    refusal = _refusal()
    if refusal is not None:
        raise refusal
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libcowbell_fork.so")
    try:
        library = _declare(ctypes.PyDLL(path))
    except OSError as error:
        raise Unsupported(f"the native part does not load: {error}", "install the wheel for this platform") from error
    _self_test(library)
    return library


# At import, while the process is small, and so that no interpreter is asked twice. Importing must work everywhere:
# the command of the package does.
_library: Any = None
_failure: Optional[Unsupported] = None
try:
    _library = _load()
except Unsupported as _error:
    _failure = _error


def check() -> None:
    """Raises :class:`Unsupported`, with the reason and a remedy, if :func:`freeze` cannot work in this interpreter."""
    if _failure is not None:
        raise Unsupported(_failure.reason, _failure.remedy)


def library() -> Any:
    """The native part, or :class:`Unsupported`."""
    check()
    probe(_library, _library)  # a subinterpreter may have been handed this module
    return _library
