"""Programs that do more than read after a freeze, in parent and child: no crash and no wrong value."""

from __future__ import annotations

import os
import sys

import pytest
from kit import run


def test_data_changes_afterwards_as_before():
    run(
        """
        import sys, cowbell_fork
        class Instance: pass
        data = {"a" + str(n): [n, Instance(), {n}] for n in range(1000)}
        cowbell_fork.freeze(data)
        for round in range(3):
            for n in range(7, 1000, 7):
                row = data["a" + str(n)]
                row.append(("new", round)); row[0] += 1; row[1].x = [round]; row[2].add(-round - 1)
                del row[2:3]; row.insert(2, {n})
            data["b" + str(round)] = list(data)
            del data["a" + str(round)]
        assert data["a7"][0] == 10 and data["a7"][1].x == [2] and data["a7"][-1] == ("new", 2)
        assert len(data) == 1000 and sys.getrefcount(object()) < 10
        # What is put into the data is an ordinary object, and dies.
        import weakref
        new = Instance()
        data["new"] = new
        watched = weakref.ref(new)
        del new, data["new"]
        assert watched() is None
        """
    )


def test_exceptions_pickles_copies_and_weak_references():
    run(
        """
        import copy, pickle, weakref, cowbell_fork
        from kit import in_child
        class Instance:
            def __init__(self, n): self.n, self.next = n, None
            def __eq__(self, other): return self.n == other.n
        def fail():
            try: raise KeyError("inner")
            except KeyError as error:
                try: raise ValueError(["payload"]) from error
                except ValueError as error: return error
        data = {"error": fail(), "items": [Instance(n) for n in range(1000)]}
        data["items"][0].next = data["items"]
        data["weak"] = weakref.WeakValueDictionary((n, data["items"][n]) for n in range(10))
        gone = []
        data["ref"] = weakref.ref(data["items"][5], gone.append)
        cowbell_fork.freeze(data)
        def use():
            try: raise data["error"]
            except ValueError as error:
                assert error is data["error"] and isinstance(error.__cause__, KeyError)
            again = pickle.loads(pickle.dumps(data["items"]))
            assert again == data["items"] and again[0].next is again
            deep = copy.deepcopy(data["items"])
            assert deep == data["items"] and deep[0].next is deep
            assert data["ref"]() is data["items"][5] and len(data["weak"]) == 10 and not gone
            more = [weakref.ref(item) for item in data["items"]]
            assert all(r() is item for r, item in zip(more, data["items"]))
            return True
        assert in_child(use) and use() and in_child(use)
        """
    )


@pytest.mark.parametrize("where", ["parent", "child", "both"])
def test_an_interpreter_ends_in_order(where):
    """Finalisation clears modules and runs collectors over what is left. It deletes less after gc.freeze() alone, too."""
    program = """
        import atexit, gc, os, sys, cowbell_fork
        class Noisy:
            def __del__(self): print("deleted", flush=True)
        class Instance:
            def __init__(self, n): self.n, self.me, self.text = n, self, "text" + str(n)
        data = [Instance(n) for n in range(1000)] + [sys.intern("interned" + str(id(sys)))]
        quiet, loud = [Noisy()], [Noisy()]
        atexit.register(print, "at exit", len(data), flush=True)
        gc.freeze() if sys.argv[2] == "gc" else cowbell_fork.freeze(data, quiet)
        if sys.argv[1] != "parent":
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
                if sys.argv[1] == "child": os._exit(0)
        late = [Noisy()]
        del late, loud[:]
    """
    ends = 2 if where == "both" else 1
    # Two that were not made immortal are deleted at once; the one that was never is.
    assert run(program, where, "frozen") == "deleted\ndeleted\nat exit 1001\n" * ends
    assert run(program, where, "gc") == run(program, where, "frozen")


def test_subinterpreters_live_beside_frozen_data():
    if sys.version_info < (3, 13):
        module = "_xxsubinterpreters"
    else:
        module = "_interpreters"
    run(
        """
        import importlib, sys, cowbell_fork
        interpreters = importlib.import_module(sys.argv[1])
        data = [{"key" + str(n): (n, [n])} for n in range(1000)]
        cowbell_fork.freeze(data)
        run = getattr(interpreters, "run_string", None) or interpreters.exec
        for _ in range(3):
            one = interpreters.create()
            run(one, "x = ['key' + str(n) for n in range(1000)]; import json; json.dumps(x)")
            interpreters.destroy(one)
        assert data[999] == {"key999": (999, [999])}
        cowbell_fork.freeze(data, [1.5])
        """,
        module,
    )


def test_two_million_objects_one_in_the_other():
    run(
        """
        import cowbell_fork
        class Node:
            __slots__ = "next",
        data = []
        for n in range(2_000_000):
            if n % 4 == 0: data = [data]
            elif n % 4 == 1: data = {"inner": data}
            elif n % 4 == 2: data = (data,)
            else:
                node = Node(); node.next = data; data = node
        report = cowbell_fork.freeze(data)
        assert report.objects >= 2_000_000, report
        depth, at = 0, data
        while at:
            at = at.next if isinstance(at, Node) else at["inner"] if isinstance(at, dict) else at[0]
            depth += 1
        assert depth == 2_000_000
        """
    )


def test_objects_that_misbehave_are_never_asked():
    run(
        """
        import cowbell_fork
        from kit import in_child
        def bad(*_): raise SystemExit("code of a user ran in the walk")
        class Meta(type):
            __hash__ = __eq__ = __instancecheck__ = __getattribute__ = bad
        names = ("__hash__", "__eq__", "__del__", "__repr__", "__sizeof__", "__iter__", "__len__", "__getattribute__",
                 "__reduce__", "__class_getitem__", "__bool__")
        Bad = Meta("Bad", (), {name: bad for name in names if name != "__del__"})
        class BadDict(dict):
            __iter__ = __len__ = __getitem__ = keys = values = items = __hash__ = bad
        class BadTuple(tuple):
            __iter__ = __len__ = __getitem__ = __hash__ = bad
        class BadText(str):
            __hash__ = __len__ = bad
        class Deleting:
            def __del__(self): raise ValueError("from __del__")
        inner = ["inner"]
        data = [Bad(), BadDict(a=inner), BadTuple([inner]), BadText("x" + str(id(inner))), Deleting()]
        cowbell_fork.freeze(data, dicts=True)
        assert in_child(lambda: len(data)) == 5
        """
    )


def test_threads_that_change_the_data_meanwhile():
    run(
        """
        import random, sys, threading, cowbell_fork
        sys.setswitchinterval(1e-5)
        data = {n: {"list": [n], "more": {}} for n in range(100_000)}
        stop, turns = threading.Event(), [0] * 3
        def change(which):
            rng = random.Random(which)
            while not stop.is_set():
                row = data[rng.randrange(100_000)]
                row["list"] = [rng.random() for _ in range(rng.randrange(20))]
                row["more"][str(rng.random())] = (row["list"], [row])
                if rng.random() < 0.3: row["more"].clear()
                turns[which] += 1
        threads = [threading.Thread(target=change, args=[which]) for which in range(3)]
        for thread in threads: thread.start()
        before = sum(turns)
        for _ in range(5):
            report = cowbell_fork.freeze(data)
        assert sum(turns) > before, "the other threads got no turn"
        stop.set()
        for thread in threads: thread.join()
        for n, row in data.items():
            assert all(isinstance(value, (int, float)) for value in row["list"])
            for numbers, (back,) in row["more"].values():
                assert back is row
        """
    )


def test_freezing_again_and_in_a_child():
    run(
        """
        import cowbell_fork
        from kit import in_child
        data = {"key " + str(n): [n * 1.5] for n in range(1000)}
        def child():
            first = cowbell_fork.freeze(data).objects
            data["new"] = [["new"]]
            second = cowbell_fork.freeze(data).objects
            return first, second, sum(len(v) for v in data.values())
        first, second, length = in_child(child)
        assert first > 3000 and 2 <= second <= 4 and length == 1001, (first, second, length)
        assert cowbell_fork.freeze(data).objects == first
        assert in_child(child)[1:] == [second, 1001] and cowbell_fork.freeze(data).objects == 0
        """
    )


def test_generators_frames_and_coroutines_run_on():
    run(
        """
        import asyncio, cowbell_fork
        def count():
            total = []
            while True: total.append((yield len(total)))
        running = count(); next(running)
        async def later(data):
            await asyncio.sleep(0)
            return len(data)
        async def main():
            data = [[n] for n in range(100)]
            task = asyncio.ensure_future(later(data))
            cowbell_fork.freeze(data, running)
            return await task
        assert asyncio.run(main()) == 100
        assert running.send([1]) == 1 and running.send([2]) == 2
        running.close()
        """
    )


def test_random_graphs_of_objects_are_what_they_were():
    """A minute in CI, over four versions; the soak goes on for ten minutes with each."""
    seconds = "600" if os.environ.get("COWBELL_SOAK") else "15"
    said = run("fuzz.py", seconds, timeout=900)
    assert int(said.split()[0]) >= 3, said
