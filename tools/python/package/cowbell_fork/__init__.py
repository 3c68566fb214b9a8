"""Keeps Python data shared with forked workers.

A forked child that only reads Python objects copies the memory they lie in, because reading an object
counts references inside it. :func:`freeze` makes a data set *immortal* (PEP 683) in place, before the fork:
its counts are no longer written, and the children read it without copying::

    import cowbell_fork

    data = load()
    print(cowbell_fork.freeze(data))
    # fork the workers here

:func:`share` makes handles, for workers that would otherwise be sent pickled copies of their arguments.

CPython 3.12 to 3.15, builds with the GIL, Linux. :func:`check` tells whether this interpreter is one of them.

What a child copied all the same it can count itself, with any Python from 3.8 on: call :func:`count_copies` before the
fork, and :func:`copied`, :func:`watch` or :func:`assert_copies` in the child.
"""

from __future__ import annotations

__version__ = "0.1.0"  # before the imports: they name it

from ._causes import Causes
from ._count import Copied, CopiesExceeded, NotCounted, assert_copies, copied, count_copies, watch
from ._freeze import freeze
from ._lines import Line
from ._native import Unsupported, check
from ._report import NotEntered, Report, TypeCount
from ._share import NotInherited, Shared, share

__all__ = [
    "Causes",
    "CopiesExceeded",
    "Copied",
    "Line",
    "NotCounted",
    "NotEntered",
    "NotInherited",
    "Report",
    "Shared",
    "TypeCount",
    "Unsupported",
    "assert_copies",
    "check",
    "copied",
    "count_copies",
    "freeze",
    "share",
    "watch",
]
