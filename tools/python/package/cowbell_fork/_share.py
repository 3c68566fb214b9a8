"""Handles for inherited objects: what goes through the pipe to a worker is a number, not the object."""

from __future__ import annotations

import os
from typing import Any, Dict, Generic, Tuple, TypeVar

T = TypeVar("T")

#: What this process shared or inherited, by number. A forked child has its parent's.
_shared: Dict[Tuple[int, int], Any] = {}


class NotInherited(LookupError):
    """A handle came to a process that was not forked from the one that called :func:`share`, or was forked before."""


class Shared(Generic[T]):
    """A handle; :func:`share` makes it. It pickles to two numbers, whatever it stands for."""

    __slots__ = ("_key",)

    def __init__(self, key: Tuple[int, int]) -> None:
        self._key = key

    def get(self) -> T:
        """The object itself, inherited and not copied.

        Raises:
            NotInherited: this process was not forked from the one that shared it, or was forked before.
        """
        try:
            found: T = _shared[self._key]
        except KeyError:
            raise NotInherited(
                f"process {os.getpid()} did not inherit what was shared as number {self._key[1]}: call share() before"
                " the workers are forked; with forkserver, in a module that is preloaded"
                " (multiprocessing.set_forkserver_preload); spawned workers inherit nothing"
            ) from None
        return found

    def __reduce__(self) -> Tuple[Any, Tuple[Tuple[int, int]]]:
        return (Shared, (self._key,))

    def __repr__(self) -> str:
        return f"<cowbell_fork.Shared number {self._key[1]}>"


#: Stands for this process alone: a number that another one drew is not found here, rather than found wrong.
_own = 0


def _be_another() -> None:
    global _own
    _own = int.from_bytes(os.urandom(8), "little")


_be_another()
os.register_at_fork(after_in_child=_be_another)


def share(obj: T) -> Shared[T]:
    """A small handle for an object, to be passed to workers in place of the object.

    Call it before the workers are forked. In a worker, :meth:`Shared.get` gives the object that it inherited; a
    worker that did not inherit it gets :class:`NotInherited`. The object is kept alive for good. Call
    :func:`cowbell_fork.freeze` on it as well, if it is made of many Python objects: else reading it copies it.
    """
    key = (_own, len(_shared))
    _shared[key] = obj
    return Shared(key)
