"""What :func:`cowbell_fork.freeze` did, as values and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple


@dataclass(frozen=True)
class TypeCount:
    """Objects of one type that were made immortal."""

    #: The type's name, with its module unless it is built in.
    name: str
    objects: int
    #: As ``sys.getsizeof`` counts, but without the UTF-8 copy that a non-ASCII str may have.
    bytes: int


@dataclass(frozen=True)
class NotEntered:
    """Objects of one type that the data refers to and that were left as they are."""

    name: str
    #: References to them, not objects: one object may be referred to many times.
    references: int
    why: str


@dataclass(frozen=True)
class Report:
    """What was made immortal, what was not, and what children will still copy."""

    #: Objects made immortal by this call.
    objects: int
    #: Their size in bytes; see :attr:`TypeCount.bytes`.
    bytes: int
    #: The same by type, largest first.
    types: Tuple[TypeCount, ...]
    #: Referred to, and left as it is, with the reason.
    not_entered: Tuple[NotEntered, ...]
    #: Hashes computed of str, bytes and, from 3.14 on, tuples.
    hashes: int
    #: Instances whose ``__dict__`` was made or looked at, with ``dicts=True``.
    dicts: int
    #: Containers that had been immortal before and were entered once more.
    already: int
    #: What reading the data in a child still writes; one sentence each.
    still_copies: Tuple[str, ...]
    #: What else to know; one sentence each.
    notes: Tuple[str, ...]
    #: How long the walk took.
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.objects:,} objects made immortal, {size_text(self.bytes)}, in {self.seconds:.2f} s;"
            f" {self.hashes:,} hashes computed"
        ]
        lines += _table([(f"{t.objects:,}", size_text(t.bytes), t.name) for t in self.types[:10]])
        if len(self.types) > 10:
            rest = self.types[10:]
            lines.append(f"  and {sum(t.objects for t in rest):,} objects of {len(rest)} more types")
        if self.not_entered:
            lines.append("Not entered, and left as it is:")
            lines += _table([(f"{n.references:,}", n.name, n.why) for n in self.not_entered[:10]])
        if len(self.not_entered) > 10:
            lines.append(f"  and {len(self.not_entered) - 10} more types")
        if self.still_copies:
            lines.append("Still copied by a child that")
            lines += [f"  - {what}" for what in self.still_copies]
        lines += list(self.notes)
        return "\n".join(lines)


def size_text(size: int) -> str:
    """A size for people."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            break
        value /= 1024
    else:
        unit = "GiB"
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def _table(rows: List[Tuple[str, str, str]]) -> List[str]:
    """Columns: the first aligned right, the second left."""
    first = max((len(row[0]) for row in rows), default=0)
    second = max((len(row[1]) for row in rows), default=0)
    return [f"  {a:>{first}}  {b:<{second}}  {c}" for a, b, c in rows]
