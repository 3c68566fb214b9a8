"""Arrays of objects, which do not show the collector what they hold."""

from __future__ import annotations

import pytest
from kit import run

pytest.importorskip("numpy", reason="numpy is not installed for this interpreter")


def test_the_objects_in_arrays_are_made_immortal():
    run(
        """
        import numpy, cowbell_fork
        from cowbell_fork import _native
        from kit import in_child, private_dirty
        immortal = lambda o: bool(_native.probe(_native.library(), o).is_immortal)
        new = lambda n: ["inner", n * 1000]
        straight = numpy.array([None] * 20_000, dtype=object)
        for n in range(20_000): straight[n] = new(n)
        square = numpy.empty((30, 30), dtype=object)
        for n in range(900): square[n // 30, n % 30] = new(n)
        fortran = numpy.asfortranarray(square.copy())
        fortran[3, 4] = new(5)
        kept = numpy.empty(100, dtype=object)
        for n in range(100): kept[n] = new(n)
        every_third = kept[1::3]
        nested = numpy.empty(1, dtype=object)
        nested[0] = [straight]
        plain = numpy.arange(1000)
        report = cowbell_fork.freeze({"a": nested, "b": square, "c": [fortran, every_third, plain]})
        assert all(immortal(item) and immortal(item[1]) for item in straight)
        assert all(immortal(item) for item in square.flat) and immortal(fortran[3, 4])
        assert [immortal(item) for item in kept] == [n % 3 == 1 for n in range(100)]
        assert sum(t.objects for t in report.types if t.name == "numpy.ndarray") == 6, report
        assert not any("numpy.ndarray" in note for note in report.notes), report.notes
        def read():
            before = private_dirty()
            for item in straight: item[1]
            return (private_dirty() - before) / 1024
        assert in_child(read) <= 0.3
        """
    )


def test_records_with_objects_are_named_and_not_entered():
    run(
        """
        import numpy, cowbell_fork
        records = numpy.zeros(3, dtype=[("n", "i8"), ("o", object)])
        report = cowbell_fork.freeze([records])
        assert "1 numpy arrays of records with objects in them were not entered." in report.notes, report.notes
        """
    )
