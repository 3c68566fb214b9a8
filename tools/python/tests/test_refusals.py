"""Interpreters that are refused, by an error that says what to do; nothing is changed then."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
from kit import run


def pretend(change):
    """A program that changes what the interpreter says of itself, before the package is imported."""
    return f"""
        import sys, sysconfig
        {change}
        import cowbell_fork
        try:
            cowbell_fork.freeze([1.5])
        except cowbell_fork.Unsupported as error:
            print(error.reason, "|", error.remedy)
            try:
                cowbell_fork.check()
            except cowbell_fork.Unsupported:
                raise SystemExit(0)
        raise SystemExit("not refused")
    """


@pytest.mark.parametrize(
    "change, reason, remedy",
    [
        ("sys.version_info = (3, 11, 9, 'final', 0)", "no immortal objects before 3.12", "Arrow"),
        ("sys.version_info = (3, 16, 0, 'final', 0)", "3.16 is not known", "pip install --upgrade cowbell-fork"),
        ("sys.gettotalrefcount = lambda: 0", "debug build", "the ordinary build"),
        ("sys.getobjects = lambda: 0", "debug build", "the ordinary build"),
        ("sysconfig.get_config_var = lambda name: name == 'Py_GIL_DISABLED'", "free-threaded", "the ordinary build"),
        ("sys.implementation.name = 'pypy'", "pypy, not CPython", "use CPython 3.12"),
        ("sys.maxsize = 2**31 - 1", "not a 64-bit", "64-bit build"),
    ],
)
def test_a_build_that_was_not_tested_is_refused(change, reason, remedy):
    said = run(pretend(change))
    assert reason in said.split("|")[0] and remedy in said.split("|")[1], said


@pytest.mark.parametrize(
    "reading, what",
    [
        ("of = id(None)", "the type is elsewhere"),
        ("is_immortal = 1", "a new object looks immortal"),
        ("word = 1", "the count of references is elsewhere"),
        ("kept_hash = 0", "a hash is kept elsewhere"),
    ],
)
def test_a_layout_that_differs_is_found_at_import(reading, what, tmp_path):
    """As on a build whose objects are laid out in another way: the probe reads something else there."""
    package = shutil.copytree(os.path.join(os.environ["COWBELL_PACKAGE"], "cowbell_fork"), tmp_path / "cowbell_fork")
    native = package / "_native.py"
    text = native.read_text()
    changed = text.replace("    return out\n", f"    out.{reading}\n    return out\n", 1)
    assert changed != text
    native.write_text(changed)
    said = run(pretend(f"sys.path.insert(0, {str(tmp_path)!r})"))
    assert what in said and "report it" in said, said


def test_a_missing_native_part_is_a_refusal_not_an_import_error(tmp_path):
    package = shutil.copytree(os.path.join(os.environ["COWBELL_PACKAGE"], "cowbell_fork"), tmp_path / "cowbell_fork")
    (package / "libcowbell_fork.so").unlink()
    said = run(pretend(f"sys.path.insert(0, {str(tmp_path)!r})"))
    assert "does not load" in said and "install the wheel" in said, said


@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="no Python of the system's")
def test_the_systems_python_is_refused_if_it_is_older():
    version = run("import sys; print(*sys.version_info[:2])", interpreter="/usr/bin/python3").split()
    if tuple(map(int, version)) >= (3, 12):
        pytest.skip(f"/usr/bin/python3 is {'.'.join(version)}, which is not refused")
    said = run(pretend("pass"), interpreter="/usr/bin/python3")
    assert f"CPython {'.'.join(version)} counts references" in said, said


@pytest.mark.skipif(sys.version_info < (3, 13), reason="ctypes cannot be imported in subinterpreters before 3.13")
def test_a_subinterpreter_is_refused():
    run(
        """
        import _interpreters
        interpreter = _interpreters.create()
        import os, sys
        code = '''if True:
            import sys
            sys.path[:0] = %r
            import cowbell_fork
            try:
                cowbell_fork.freeze([1.5])
            except cowbell_fork.Unsupported as error:
                assert "subinterpreter" in str(error), error
            else:
                raise AssertionError("not refused")
        ''' % (sys.path,)
        failed = _interpreters.exec(interpreter, code)
        assert failed is None, failed
        _interpreters.destroy(interpreter)
        """
    )
