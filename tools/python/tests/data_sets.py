"""The data sets that children read, and what a child does with each."""

from __future__ import annotations

import gc
import sys


class Instance:
    def __init__(self, number):
        self.number = number
        self.name = f"name-{number}"


class Slotted:
    __slots__ = ("number", "name")

    def __init__(self, number):
        self.number = number
        self.name = f"slot-{number}"


def strings(share):
    return [f"string number {n} of the list" for n in range(int(3_000_000 * share))]


def lists(share):
    return {f"key-{n}": [n, n + 1, f"value-{n}"] for n in range(int(1_000_000 * share))}


def graph(share):
    nodes = int(200_000 * share)
    return {f"n{n}": {f"n{(n * 7 + k * k) % nodes}": k * 0.5 for k in range(16)} for n in range(nodes)}


def instances(share):
    return [Instance(n) for n in range(int(500_000 * share))]


def slotted(share):
    return [Slotted(n) for n in range(int(1_000_000 * share))]


def numbers(share):
    return [n * 1000 if n % 2 else n * 0.5 for n in range(int(4_000_000 * share))]


def tuples(share):
    return [(n, f"t{n}", (n * 3, str(n))) for n in range(int(1_000_000 * share))]


ALL = (strings, lists, graph, instances, slotted, numbers, tuples)


def read(data):
    """Visits every object."""
    if isinstance(data, dict):
        for key, value in data.items():
            read(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            if isinstance(value, (list, dict, tuple)):
                read(value)
            elif isinstance(value, (Instance, Slotted)):
                value.number, value.name


def look_up(data):
    """Hashes and finds what can be hashed and found."""
    if isinstance(data, dict):
        for key in data:
            assert key in data
            for inner in data[key] if isinstance(data[key], dict) else ():
                hash(inner)
    else:
        for value in data:
            if not isinstance(value, (Instance, Slotted)):
                hash(value)
    assert not isinstance(data, list) or data[-1] is data[len(data) - 1]


def iterate(data):
    """Goes over it in the ways that loops do."""
    for _ in enumerate(zip(data, data)):
        pass
    for _ in reversed(data):
        pass
    assert sum(1 for value in data if value is None) == 0


def collect(data):
    gc.collect()


ACTIONS = {"read": read, "look up": look_up, "iterate": iterate, "collect": collect}


def main():
    """usage: data_sets.py SET plain|gc|frozen SHARE: MiB newly Private_Dirty in a child, by action, as JSON."""
    import json

    from kit import in_child, private_dirty

    name, how, share = sys.argv[1:]
    data = globals()[name](float(share))
    if how == "gc":
        gc.freeze()
    elif how == "frozen":
        import cowbell_fork

        report = cowbell_fork.freeze(data)
        assert report.objects > 1000, report

    def child(action):
        before = private_dirty()
        action(data)
        return (private_dirty() - before) / 1024

    print(json.dumps({action: in_child(child, of) for action, of in ACTIONS.items()}))


if __name__ == "__main__":
    main()
