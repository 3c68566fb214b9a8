"""usage: fuzz.py SECONDS [SEED]: random graphs of objects are frozen, changed and read, in children that are forked.

Each round has a process of its own; a failure prints the seed of its round. What was built is compared with the same
graph built again from the same seed, by a digest that walks both.
"""

from __future__ import annotations

import array
import collections
import decimal
import fractions
import gc
import itertools
import random
import sys
import time
import weakref

from kit import in_child


class Plain:
    pass


class Slots:
    __slots__ = ("a", "b", "__weakref__")


class Both(Plain):
    __slots__ = ("c",)


class Words(str):
    pass


class Table(dict):
    pass


class Rows(list):
    pass


Point = collections.namedtuple("Point", "x y")


def leaf(rng):
    return rng.choice(
        [
            lambda: rng.randrange(-(10**30), 10**30),
            lambda: rng.random(),
            lambda: "text %d" % rng.randrange(10**9),
            lambda: "t\u00e9xt \u0101 %d" % rng.randrange(10**9),
            lambda: b"bytes %d" % rng.randrange(10**9),
            lambda: Words("words %d" % rng.randrange(10**9)),
            lambda: complex(rng.random(), 1),
            lambda: decimal.Decimal(rng.randrange(10**20)) / 7,
            lambda: fractions.Fraction(rng.randrange(10**9), 7),
            lambda: array.array("d", [rng.random()]),
            lambda: bytearray(b"%d" % rng.randrange(10**9)),
            lambda: range(rng.randrange(10**9)),
            lambda: None,
            lambda: slice(1, rng.randrange(10**9)),
        ]
    )()


def build(rng, size):
    """A graph with loops, in which any object may hold any other that was made before."""
    made = [leaf(rng) for _ in range(10)]
    hashable = ["key %d" % n for n in range(50)]
    pick = lambda: rng.choice(made[-200:] if rng.random() < 0.8 else made)
    for number in range(size):
        kind = rng.randrange(15)
        if kind < 3:
            new = leaf(rng)
        elif kind == 3:
            new = [pick() for _ in range(rng.randrange(8))]
        elif kind == 4:
            new = {rng.choice(hashable): pick() for _ in range(rng.randrange(8))}
        elif kind == 5:
            new = tuple(pick() for _ in range(rng.randrange(5)))
        elif kind == 6:
            new = {rng.choice(hashable) for _ in range(rng.randrange(9))}
        elif kind == 7:
            new = frozenset(rng.choice(hashable) for _ in range(rng.randrange(9)))
        elif kind == 8:
            new = rng.choice([Plain, Both])()
            for name in rng.sample(["a", "b", "d", "e"], rng.randrange(4)):
                setattr(new, name, pick())
        elif kind == 9:
            new = Slots()
            new.a = pick()
        elif kind == 10:
            new = rng.choice([Table, collections.OrderedDict, lambda: collections.defaultdict(list)])()
            new[number] = pick()
        elif kind == 11:
            new = Rows([pick(), pick()])
        elif kind == 12:
            new = collections.deque([pick()], maxlen=9)
        elif kind == 13:
            new = Point(pick(), number)
        else:
            new = (rng.choice(hashable), ("nested", number, (1.5, None, b"x%d" % number)))
            hashable.append("key of %d" % number)
        # Loops: an earlier container holds the later object.
        if rng.random() < 0.2:
            earlier = pick()
            if isinstance(earlier, (Plain, Slots)):
                earlier.a = new
            elif isinstance(earlier, list):
                earlier.append(new)
            elif isinstance(earlier, dict):
                earlier["key 0"] = new
        made.append(new)
    return made


def digest(roots):
    """A number for all that is reachable, the same for the same graph built again."""
    order, todo, total = {}, list(roots), 0
    while todo:
        item = todo.pop()
        if id(item) in order:
            total = hash((total, order[id(item)]))
            continue
        order[id(item)] = len(order)
        own = type(item).__name__
        if isinstance(item, dict):
            # By repr: hashes of str differ between runs, not between the two graphs of one.
            todo += itertools.chain(item.keys(), item.values())
            own = (own, len(item))
        elif isinstance(item, (list, tuple, collections.deque)):
            todo += item
            own = (own, len(item))
        elif isinstance(item, (set, frozenset)):
            own = (own, *sorted(item))
        elif isinstance(item, Plain):
            todo += vars(item).values()
            own = (own, *vars(item))
        elif isinstance(item, Slots):
            todo += [getattr(item, name) for name in ("a", "b") if hasattr(item, name)]
        else:
            own = (own, repr(item))
        total = hash((total, own))
    return total


def change(rng, made):
    """Changes the same things in both graphs."""
    for number in range(200):
        item = made[rng.randrange(len(made))]
        other = made[rng.randrange(len(made))]
        if isinstance(item, list):
            item.append(other) if rng.random() < 0.6 else item.clear()
        elif isinstance(item, dict):
            item["new"] = other
            if rng.random() < 0.3:
                item.pop(next(iter(item)))
        elif isinstance(item, set):
            item.add("new %d" % number)
        elif isinstance(item, Plain):
            item.a = other
            if rng.random() < 0.3:
                item.__dict__ = {"b": other}
        elif isinstance(item, Slots):
            item.b = other


def round_of(seed):
    """Builds two graphs alike, freezes one, and sees that they stay alike."""
    import cowbell_fork

    rng = random.Random(seed)
    size = rng.choice([10, 300, 5000])
    frozen, mortal = build(random.Random(seed), size), build(random.Random(seed), size)
    assert digest(frozen) == digest(mortal), "the fuzz itself"
    weak = [weakref.ref(item) for item in frozen if isinstance(item, (Plain, Slots))]
    roots = frozen if rng.random() < 0.7 else [frozen[-1]]
    cowbell_fork.freeze(*roots, hashes=rng.random() < 0.7, dicts=rng.random() < 0.5)

    def use():
        for turn in range(3):
            assert digest(frozen) == digest(mortal), "another value"
            change(random.Random(seed + turn), frozen)
            change(random.Random(seed + turn), mortal)
            gc.collect()
            if turn == 1:
                cowbell_fork.freeze(frozen)
        assert digest(frozen) == digest(mortal), "another value after changes"
        assert all(ref() is not None for ref in weak)
        return True

    def use_and_drop():
        use()
        frozen.clear()
        gc.unfreeze()
        gc.collect()
        return True

    assert in_child(use_and_drop) and use() and in_child(use)
    return True


def main():
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32)
    import cowbell_fork  # noqa: F401  (once, before the children)

    rounds, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            in_child(round_of, seed)
        except AssertionError as error:
            raise SystemExit(f"fuzz.py 0 {seed}: {error}") from error
        rounds, seed = rounds + 1, seed + 1
        if seconds == 0:
            break
    print(rounds, "rounds")


if __name__ == "__main__":
    main()
