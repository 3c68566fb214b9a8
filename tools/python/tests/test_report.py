"""What freeze() says it did, against what the interpreter says of the same objects."""

from __future__ import annotations

from kit import run


def test_objects_and_bytes_are_those_that_getsizeof_counts():
    run(
        """
        import sys, cowbell_fork
        class Instance:
            def __init__(self, number):
                self.number = number
        class Slotted:
            __slots__ = "number", "__weakref__"
        class Words(str): pass
        class Pairs(dict): pass
        slotted = Slotted()
        slotted.number = 3
        salt = str(id(slotted))  # no constants: they may be immortal by themselves
        data = [
            salt, salt + "\\u0101", salt + "\\U0001f600", salt.encode(), 10 ** 30 + id(slotted), -1000 - id(slotted),
            id(slotted) * 1.5, complex(id(slotted), 1), bytearray(salt.encode()), {id(slotted)}, frozenset({salt}),
            {salt: [salt] * 9}, (salt, slotted), Words(salt), Pairs(a=[salt]), range(id(slotted)), slotted,
        ]
        data[4:4] = [list(range(n)) for n in range(20)] + [{str(k) + salt: None for k in range(n)} for n in range(20)]
        # Each of these objects once, in the order of a walk of our own.
        seen, todo, expected = set(), [data], {}
        while todo:
            item = todo.pop()
            if id(item) in seen or item is None or type(item) is int and -6 < item < 1025:
                continue
            seen.add(id(item))
            size, count = expected.get(type(item).__name__, (0, 0))
            expected[type(item).__name__] = size + sys.getsizeof(item), count + 1
            if isinstance(item, dict): todo += [*item, *item.values()]
            elif isinstance(item, (list, tuple, set, frozenset)): todo += item
            elif isinstance(item, range): todo += [item.start, item.stop, item.step]
            elif isinstance(item, Slotted): todo.append(item.number)
        report = cowbell_fork.freeze(data)
        found = {t.name.split(".")[-1]: (t.bytes, t.objects) for t in report.types}
        del expected["int"], found["int"]  # small ones are immortal in one version and not in the other
        # The letter "a" is the interpreter's own.
        assert found == {**expected, "str": found["str"]}, (found, expected)
        assert expected["str"][1] - 1 <= found["str"][1] <= expected["str"][1], (found, expected)
        assert report.objects == sum(t.objects for t in report.types)
        assert report.bytes == sum(t.bytes for t in report.types)
        """
    )


def test_each_object_that_is_reached_is_immortal_afterwards():
    run(
        """
        import sys, cowbell_fork
        from cowbell_fork import _native
        class Instance: pass
        instance = Instance()
        instance.inner = {"k" + str(id(instance)): (1.5 * id(instance), [b"b" + str(id(instance)).encode()])}
        loop = []
        loop.append(loop)
        cowbell_fork.freeze(instance, loop)
        immortal = lambda o: bool(_native.probe(_native.library(), o).is_immortal)
        (key, pair), = instance.inner.items()
        for item in (instance, Instance, instance.inner, key, pair, pair[0], pair[1], pair[1][0], loop):
            assert immortal(item), item
            if hasattr(sys, "_is_immortal"):
                assert sys._is_immortal(item), item
        assert not immortal(["new"])
        """
    )


def test_what_leads_out_of_the_data_is_named_and_left_mortal():
    run(
        """
        import json, logging, os, sys, threading, cowbell_fork
        from cowbell_fork import _native
        def function(): pass
        class Holder: pass
        def generate(): yield 1
        file = open(os.devnull, "w")
        lock = threading.Lock()
        data = [json, function, function.__code__, Holder, generate(), file, lock, logging.getLogger("x"), [1.5]]
        report = cowbell_fork.freeze(data)
        why = {entry.name: entry.why for entry in report.not_entered}
        assert set(why) == {"module", "function", "code", "type", "generator", "_io.TextIOWrapper",
                            "_thread.lock", "logging.Logger"}, why
        assert why["function"].startswith("a function"), why
        assert why["_io.TextIOWrapper"].startswith("an open file"), why
        assert why["logging.Logger"].startswith("a logger"), why
        for item in data[:-1]:
            if item is not Holder:
                assert not _native.probe(_native.library(), item).is_immortal, item
        assert any("not entered" in line for line in report.still_copies)
        text = str(report)
        assert "Not entered" in text and "_io.TextIOWrapper" in text, text
        """
    )


def test_hashes_are_kept_and_no_code_of_users_runs():
    run(
        """
        import sys, cowbell_fork
        from cowbell_fork import _native
        class Loud:
            def __hash__(self): raise SystemExit("__hash__ was called")
            def __eq__(self, other): raise SystemExit("__eq__ was called")
            def __sizeof__(self): raise SystemExit("__sizeof__ was called")
        class LoudText(str):
            def __hash__(self): raise SystemExit("__hash__ was called")
        def fresh(text): return "-".join([text, str(id(text))])
        words = [fresh("a"), fresh("b").encode()]
        quiet = (fresh("c"), (fresh("d"), 1.5, None, True))
        loud = (fresh("e"), Loud())
        both = (loud, quiet)
        deep = ()
        for _ in range(1_000_000):
            deep = (deep,)
        report = cowbell_fork.freeze(words, quiet, loud, both, deep, LoudText("x"))
        kept = lambda o: _native.probe(_native.library(), o).kept_hash
        assert kept(words[0]) == hash(words[0]) and kept(words[1]) == hash(words[1])
        # `deep` ends with the empty tuple, which keeps its hash already or computes it like the others.
        texts = 5
        if sys.version_info >= (3, 14):
            assert kept(quiet) == hash(quiet) and kept(loud) == -1
            assert report.hashes - texts in (1_000_002, 1_000_003), report.hashes
            assert any("2 tuples" in line for line in report.still_copies), report.still_copies
        else:
            assert report.hashes == texts, report.hashes
        """
    )


def test_without_hashes_it_says_how_many_are_missing():
    run(
        """
        import cowbell_fork
        data = ["text " + str(n) for n in range(10)]
        report = cowbell_fork.freeze(data, hashes=False)
        assert report.hashes == 0
        assert any("10 str or bytes" in line and "hashes=True" in line for line in report.still_copies), report
        """
    )


def test_a_text_that_is_referred_to_often_is_one_text():
    run(
        """
        import cowbell_fork
        wide = "\u0101" + str(id(cowbell_fork))
        report = cowbell_fork.freeze([wide] * 1000, hashes=False)
        text = " ".join(report.still_copies)
        assert "one of 1 non-ASCII str" in text and "one of 1 str or bytes" in text, text
        assert report.types[-1].objects == 1 and report.objects == 2, report
        """
    )


def test_dicts_are_made_beforehand_where_children_will_ask_for_them():
    program = """
        import sys, cowbell_fork
        from kit import in_child, private_dirty
        class Instance:
            def __init__(self, number): self.number = number
        data = [Instance(n) for n in range(50_000)]
        report = cowbell_fork.freeze(data, dicts=sys.argv[1] == "dicts")
        def child():
            before = private_dirty()
            for item in data:
                vars(item)
            return (private_dirty() - before) / 1024
        print(report.dicts, in_child(child), *report.still_copies)
    """
    made, mib, *_ = run(program, "dicts").split()
    assert int(made) == 50_000 and float(mib) <= 0.3
    made, mib, *rest = run(program, "no dicts").split()
    assert int(made) == 0 and float(mib) > 3
    assert "50,000 instances for its __dict__" in " ".join(rest)


def test_a_second_freeze_finds_what_was_added():
    run(
        """
        import cowbell_fork
        data = {"list " + str(n): [n * 1000] for n in range(100)}
        first = cowbell_fork.freeze(data)
        again = cowbell_fork.freeze(data)
        assert again.objects == 0 and again.already == 101, again
        data["list 5"].append(["added"])
        third = cowbell_fork.freeze(data)
        # The list; its word is a constant of the code, immortal or not.
        assert 1 <= third.objects <= 2 and third.types[0].name == "list", third
        """
    )


def test_types_that_show_nothing_and_finalizers_are_named():
    run(
        """
        import datetime, cowbell_fork
        class Closing:
            def __del__(self): pass
        report = cowbell_fork.freeze([Closing(), datetime.datetime(2026, 1, 2)])
        text = str(report)
        assert "Finalizers that will never run: of __main__.Closing." in text, text
        assert "hashes, for the first time, one of these, which keep their hash: datetime.datetime" in text, text
        assert "without looking inside, where they show nothing: datetime.datetime" in text, text
        """
    )
