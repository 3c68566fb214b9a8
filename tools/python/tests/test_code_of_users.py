"""Code of the data's own types: none of it runs in the walk, whatever it does elsewhere."""

from __future__ import annotations

import sys

from kit import run

#: A class whose methods work until it is armed, and then note that they were asked, and raise.
ARMED = """
    import cowbell_fork
    from kit import in_child
    class Armed:
        asked = None
        def __init__(self, number): self.number = number
        def __hash__(self):
            if Armed.asked is not None: self.ask("__hash__")
            return self.number // 3
        def __eq__(self, other):
            if Armed.asked is not None: self.ask("__eq__")
            return isinstance(other, Armed) and self.number == other.number
        def __del__(self):
            if Armed.asked is not None: self.ask("__del__")
        def ask(self, name):
            Armed.asked.append(name)
            raise RuntimeError(name)
"""


def test_keys_members_and_items_are_never_asked_and_found_as_before():
    run(
        ARMED
        + """
    import collections, dataclasses, sys, weakref
    @dataclasses.dataclass(frozen=True)
    class Row:
        key: Armed
        text: str
    all = [Armed(n) for n in range(300)]
    data = {
        "dict": {key: [key.number] for key in all}, "set": set(all), "frozenset": frozenset(all),
        "ordered": collections.OrderedDict((key, key.number) for key in all), "counter": collections.Counter(all),
        "default": collections.defaultdict(list, {key: [key] for key in all}), "deque": collections.deque(all),
        "items": [(key, "x") for key in all],
        "tuples": {(key, ("nested", key)): key.number for key in all}, "rows": {Row(key, "x"): key for key in all},
        "weak": weakref.WeakKeyDictionary((key, key.number) for key in all),
    }
    Armed.asked = []
    report = cowbell_fork.freeze(data, dicts=True)
    assert Armed.asked == [], Armed.asked
    # A tuple keeps its hash from 3.14 on. Theirs were not computed, and that is said.
    said = any("tuples for the first time" in line for line in report.still_copies)
    assert said == (sys.version_info >= (3, 14)), report
    Armed.asked = None
    def find():
        for number in range(300):
            key = Armed(number)
            assert data["dict"][key] == [number] and key in data["set"] and key in data["frozenset"]
            assert data["ordered"][key] == number and data["counter"][key] == 1 and data["default"][key] == [key]
            assert data["tuples"][key, ("nested", key)] == number and data["rows"][Row(key, "x")] == key
            assert data["deque"][number] == key and data["weak"][key] == number
        return len(data["dict"])
    assert in_child(find) == 300 and find() == 300
    # Where they raise, that is the program's own error, in parent and child.
    def fail():
        Armed.asked = []
        try: data["dict"][all[7]]
        except RuntimeError as error: return [str(error), Armed.asked]
    assert in_child(fail) == ["__hash__", ["__hash__"]]
    """
    )


def test_hashes_that_change_with_each_question_harm_nobody_else():
    run(
        """
        import cowbell_fork, itertools
        from kit import in_child
        count = itertools.count()
        class Changing:
            def __hash__(self): return next(count)
            def __eq__(self, other): return next(count) % 2 == 0
        keys = [Changing() for _ in range(1000)]
        data = {key: [n] for n, key in enumerate(keys)}
        data.update({"good %d" % n: n for n in range(1000)})
        mixed = {*keys, *range(1000)}
        fixed = frozenset(mixed)
        before = next(count)
        cowbell_fork.freeze(data, mixed, fixed)
        assert next(count) == before + 1, "members were asked"
        assert in_child(lambda: sum(data["good %d" % n] for n in range(1000))) == 499500
        assert in_child(lambda: len(data)) == len(data) >= 1001 and in_child(lambda: 999 in mixed)
        """
    )


def test_finalizers_that_change_the_data_run_between_steps_only():
    """Another thread drops objects whose finalizer changes what is being walked, or brings itself back."""
    run(
        """
        import sys, threading, cowbell_fork
        sys.setswitchinterval(1e-5)
        data = {n: [n, {"k": [n]}] for n in range(100_000)}
        back, stop = [], threading.Event()
        class Dying:
            def __init__(self, number): self.number = number
            def __del__(self):
                row = data[self.number % 100_000]
                row[1].clear(); row[1]["k"] = [self.number]; row.append(Dying.__name__); row.pop()
                data[-1 - self.number % 100] = [self]      # it lives on, and is new data
                if self.number % 1000 == 0: back.append(self)
                if self.number % 7 == 0: raise ValueError("from __del__")
        sys.unraisablehook = lambda error: None
        died = [0]
        def drop():
            while not stop.is_set():
                died[0] += 1
                Dying(died[0] * 37)
        thread = threading.Thread(target=drop)
        thread.start()
        before = died[0]
        for _ in range(4):
            report = cowbell_fork.freeze(data)
        assert died[0] > before, "the other thread got no turn"
        stop.set()
        thread.join()
        for n in range(100_000):
            first, more = data[n]
            assert first == n and isinstance(more["k"][0], int) and list(more) == ["k"]
        """
    )


def test_no_line_but_the_packages_own_runs_while_it_freezes():
    said = run(
        """
        import abc, collections, dataclasses, enum, functools, sys, types, typing, cowbell_fork
        class Meta(abc.ABCMeta):
            def __instancecheck__(cls, other): return True
            def __getattribute__(cls, name): return super().__getattribute__(name)
            def __hash__(cls): return 7
        class Descriptor:
            def __get__(self, *of): return self
            def __set__(self, *to): pass
        class Full(metaclass=Meta):
            one = Descriptor()
            @property
            def two(self): return 2
            @functools.cached_property
            def three(self): return 3
            def __init__(self): self.x, self.y = [1.5], {"text" + str(id(self))}
            def __getattribute__(self, name): return super().__getattribute__(name)
            def __getattr__(self, name): return name
            def __hash__(self): return 1
            def __eq__(self, other): return True
            def __len__(self): return 1
            def __bool__(self): return True
            def __iter__(self): return iter([1])
            def __sizeof__(self): return 1
            def __dir__(self): return []
            def __reduce_ex__(self, protocol): return Full, ()
            def __repr__(self): return "Full()"
            def __del__(self): pass
            @property
            def __class__(self): return int
            @property
            def __dict__(self): return {}
        class Color(enum.Enum):
            RED = 1
            def __hash__(self): return 3
        class Table(dict):
            def __getitem__(self, key): return 1
            def __iter__(self): return iter([])
            def keys(self): return []
            def items(self): return []
            def __missing__(self, key): return key
        @dataclasses.dataclass(frozen=True)
        class Row:
            a: typing.Any
            b: str = "b"
        Point = collections.namedtuple("Point", "x y")
        data = [
            Full(), Color.RED, {Color.RED: 1}, Table(a=[Full()]), Row(Full()), Point(Row(1), (Full(),)), {Full(): (Full(), "t")},
            types.MappingProxyType({1: [Full()]}), collections.ChainMap({1: Full()}), frozenset({Row(2), Full()}),
            types.SimpleNamespace(a=Full()), collections.UserDict({1: Full()}), functools.partial(Full), map(Full, []),
            [memoryview(b"x"), slice(Full(), 2), iter([Full()]), reversed([Full()]), enumerate([Full()])],
        ]
        modules = set()
        def note(frame, event, _):
            if event == "call": modules.add(frame.f_globals["__name__"])
        sys.setprofile(note)
        report = cowbell_fork.freeze(data, dicts=True)
        sys.setprofile(None)
        print(*sorted(modules))
        assert report.objects > 60, report
        """
    )
    # The package itself calls ctypes.
    assert "__main__" not in said and {name.split(".")[0] for name in said.split()} == {"cowbell_fork", "ctypes"}, said


def test_a_child_starts_and_ends_interpreters_beside_frozen_data():
    """None of them lives over a fork: CPython's own fork crashes then, or never ends."""
    module = "_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters"
    run(
        """
        import importlib, sys, cowbell_fork
        from kit import in_child
        interpreters = importlib.import_module(sys.argv[1])
        execute = getattr(interpreters, "run_string", None) or interpreters.exec
        new = sys.version_info >= (3, 13)
        kinds = [("isolated",), ("legacy",)] if new else [{"isolated": True}, {"isolated": False}]
        text = "interned " + str(id(sys))
        data = [{sys.intern(text + str(n)): (n, [n], text)} for n in range(1000)]
        cowbell_fork.freeze(data)
        def use():
            for kind in kinds * 2:
                one = interpreters.create(*kind) if new else interpreters.create(**kind)
                execute(one, "import gc, json, sys; x = [sys.intern('interned' + str(n)) for n in range(1000)]; gc.collect()")
                interpreters.destroy(one)
            return sum(row[sys.intern(text + str(n))][0] for n, row in enumerate(data))
        for _ in range(2):
            assert in_child(use) == 499500 and use() == 499500
            cowbell_fork.freeze(data, [text])
        """,
        module,
    )
