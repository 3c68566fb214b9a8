"""The marker limit_copies: what a test's body does in the child is the test's outcome, whatever it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import pytest

#: What the tests of an example hold: 20 MiB of memory that no child has written.
HOLDS = """
    import logging, mmap, os, signal, sys, time, unittest, warnings
    import pytest
    PAGE = mmap.PAGESIZE
    @pytest.fixture(scope="module")
    def area():
        area = mmap.mmap(-1, 20 << 20, flags=mmap.MAP_PRIVATE)
        for at in range(0, 20 << 20, PAGE): area[at] = 1
        yield area
        assert area[0] == 1, "the parent has its own"
    def write(area, mib):
        for at in range(0, mib << 20, PAGE): area[at] = 2
"""


@pytest.fixture
def session(tmp_path):
    """Runs pytest with the plugin on a file of tests; gives what it printed, and its exit code."""

    def start(body, *arguments, plugin=True, prepare="", timeout=120):
        file = tmp_path / "test_example.py"
        file.write_text(textwrap.dedent(HOLDS) + textwrap.dedent(body))
        (tmp_path / "conftest.py").write_text(textwrap.dedent(prepare))
        path = [os.environ["COWBELL_PACKAGE"], os.environ.get("PYTHONPATH", "")]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path), COLUMNS="120")
        environment.pop("PYTEST_ADDOPTS", None)
        with_plugin = ["-p", "cowbell_fork.pytest_plugin"] if plugin else []
        # Into a file: processes that a test leaves behind would keep a pipe open.
        with open(tmp_path / "out", "w+") as out, open(tmp_path / "err", "w+") as err:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *with_plugin, *arguments, str(file)],
                stdout=out, stderr=err, timeout=timeout, env=environment, cwd=tmp_path,
            )
            for stream in (out, err):
                stream.seek(0)
            done.stdout, done.stderr = out.read(), err.read()
        return done

    return start


def outcomes(done):
    """Each test's outcome, by name."""
    return dict(re.findall(r"^test_example\.py::(\S+) (\w+)", done.stdout, re.M))


def test_a_body_that_copies_more_than_allowed_fails_with_the_report(session):
    done = session(
        """
        @pytest.mark.limit_copies("2 MB")
        def test_little(area): write(area, 1)
        @pytest.mark.limit_copies("2 MB")
        def test_much(area): write(area, 10)
        @pytest.mark.limit_copies(max_bytes=12 << 20)
        def test_much_is_allowed(area): write(area, 10)
        def test_no_limit(area): assert area[0] == 1
        @pytest.mark.limit_copies("2 MB")
        class TestInClass:
            def test_method(self, area): write(area, 3)
        @pytest.mark.parametrize("mib", [1, 3])
        @pytest.mark.limit_copies("2 MB")
        def test_each(area, mib): write(area, mib)
        @pytest.mark.limit_copies(0.5)
        def test_wrong_size(): pass
        @pytest.mark.limit_copies()
        def test_no_size(): pass
        @pytest.mark.limit_copies("2 MB")
        class TestOld(unittest.TestCase):
            def test_old(self): pass
        """,
        "-v", "--junitxml=junit.xml",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert outcomes(done) == {
        "test_little": "PASSED",
        "test_much": "FAILED",
        "test_much_is_allowed": "PASSED",
        "test_no_limit": "PASSED",
        "TestInClass::test_method": "FAILED",
        "test_each[1]": "PASSED",
        "test_each[3]": "FAILED",
        "test_wrong_size": "ERROR",
        "test_no_size": "ERROR",
        "TestOld::test_old": "ERROR",
    }, done.stdout
    assert re.search(r"limit_copies: 10\.\d MiB copied, and 2\.0 MiB allowed", done.stdout), done.stdout
    assert re.search(r"copied [\d,]+ pages, 10\.\d MiB, of the \d+\.\d MiB that were shared", done.stdout), done.stdout
    assert "cowbell_fork.freeze(data)" in done.stdout and "is no size" in done.stdout
    assert "takes one argument" in done.stdout and "this is a unittest.TestCase" in done.stdout
    with open(os.path.join(os.path.dirname(done.args[-1]), "junit.xml")) as file:
        assert file.read().count('name="copied_bytes"') == 6


def test_a_test_that_does_nothing_copies_little(session):
    done = session(
        """
        @pytest.mark.limit_copies("1 MB")
        def test_nothing(area): pass
        """
    )
    assert done.returncode == 0, done.stdout


def test_what_a_body_raises_and_skips_is_the_tests_outcome(session):
    body = """
        class Own(ValueError):
            def __init__(self, number, text): super().__init__(f"{number} {text}"); self.lock = open(os.devnull)
        @pytest.mark.limit_copies("1 GB")
        class TestAll:
            def test_assert(self):
                seven = [1, 2, 7]
                assert seven == [1, 2, 8]
            def test_raise(self): raise KeyError("of the body")
            def test_own(self): raise Own(7, "seven")
            def test_local(self):
                class Local(LookupError): pass
                raise Local("local")
            def test_fail(self): pytest.fail("failed by hand", pytrace=False)
            def test_exit(self): sys.exit(3)
            def test_skip(self): pytest.skip("skipped by hand")
            def test_import(self): pytest.importorskip("no_such_module_anywhere")
            @pytest.mark.skip(reason="by mark")
            def test_skip_mark(self): raise SystemError
            def test_xfail(self): pytest.xfail("expected by hand")
            @pytest.mark.xfail(raises=Own, strict=True)
            def test_xfail_raises(self): raise Own(1, "one")
            @pytest.mark.xfail(raises=LookupError, strict=True)
            def test_xfail_local(self):
                class Local(LookupError): pass
                raise Local("local")
            @pytest.mark.xfail(raises=KeyError)
            def test_xfail_other(self): raise Own(1, "other")
            @pytest.mark.xfail
            def test_xpass(self): pass
            @pytest.mark.xfail(strict=True)
            def test_xpass_strict(self): pass
            def test_raises(self):
                with pytest.raises(Own, match="9 nine"): raise Own(9, "nine")
            def test_returns(self, request): assert request.node.name == "test_returns"
        """
    there = session(body, "-v", "-rA")
    here = session(body, "-v", "-rA", plugin=False, prepare="def pytest_configure(config): config.addinivalue_line('markers', 'limit_copies')")
    assert outcomes(there) == outcomes(here), there.stdout
    assert len(outcomes(there)) == 17 and outcomes(there)["TestAll::test_xfail_raises"] == "XFAIL", there.stdout

    def failures(done):
        text = done.stdout.split("FAILURES", 1)[1].split("short test summary", 1)[0]
        # Addresses and times differ.
        return re.sub(r"0x[0-9a-f]+|\d+\.\d+s", "", text)

    # The tracebacks, too, to the letter.
    assert failures(there) == failures(here)
    assert "assert [1, 2, 7] == [1, 2, 8]" in there.stdout and "failed by hand" in there.stdout

    def summary(done):
        return [re.sub(r"/\S*/|:\d+:", "", line) for line in done.stdout.splitlines() if re.match(r"(SKIPPED|XFAIL|FAILED)", line)]

    assert [line.split(":")[0] for line in summary(there)] == [line.split(":")[0] for line in summary(here)]


@pytest.mark.parametrize("capture", ["fd", "sys", "no", "tee-sys"])
def test_output_logs_and_warnings_are_the_tests(session, capture):
    body = """
        @pytest.mark.limit_copies("1 GB")
        def test_said(area, recwarn):
            print("printed by the body")
            print("to stderr by the body", file=sys.stderr)
            logging.getLogger("an.app").warning("logged %s", "by the body")
            warnings.warn("in the record")
            assert 0
        @pytest.mark.limit_copies("1 GB")
        def test_warned(): warnings.warn("warned by the body", DeprecationWarning)
        @pytest.mark.limit_copies("1 GB")
        def test_capsys(capsys, caplog):
            print("one")
            logging.error("two")
            assert capsys.readouterr().out == "one\\n" and caplog.messages == ["two"]
            print("printed after")
        def test_once():
            print("once only")
            assert 0
    """
    done = session(body, f"--capture={capture}")
    text = done.stdout + done.stderr
    assert "2 failed, 2 passed, 1 warning" in text, text
    # With -s it went out at once, and with tee-sys both ways.
    times = 2 if capture == "tee-sys" else 1
    assert text.count("printed by the body\n") in (times, times + 1), text
    assert "to stderr by the body\n" in text and text.count("once only\n") == times, text
    assert text.count("logged by the body\n") == 1 and text.count("DeprecationWarning: warned by the body") == 1, text


def test_a_child_that_dies_or_hangs_ends_with_its_test(session):
    body = """
        @pytest.mark.limit_copies("1 GB")
        def test_killed(): os.kill(os.getpid(), signal.SIGSEGV)
        @pytest.mark.limit_copies("1 GB")
        def test_exits(): os._exit(7)
        @pytest.mark.limit_copies("1 GB")
        def test_left_behind(request):
            pid = os.fork()
            if pid == 0:
                signal.pause()  # holds the pipe
            (request.path.parent / "left").write_text(str(pid))
        def test_left_behind_is_not_waited_for(request):
            os.kill(int((request.path.parent / "left").read_text()), signal.SIGKILL)
        @pytest.mark.limit_copies("1 GB")
        def test_timeout(request):
            (request.path.parent / "pid").write_text(str(os.getpid()))
            signal.pause()
        def test_last(): pass
    """
    # As pytest-timeout does it: a signal in pytest's own process, whose handler raises.
    prepare = """
        import pytest, signal
        def late(*_): pytest.fail("out of time")
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_call(item):
            signal.signal(signal.SIGALRM, late)
            signal.setitimer(signal.ITIMER_REAL, 2 if item.name == "test_timeout" else 0)
            yield
            signal.setitimer(signal.ITIMER_REAL, 0)
    """
    done = session(body, "-v", prepare=prepare)
    expected = {
        "test_killed": "FAILED",
        "test_exits": "FAILED",
        "test_left_behind": "PASSED",
        "test_left_behind_is_not_waited_for": "PASSED",
        "test_timeout": "FAILED",
        "test_last": "PASSED",
    }
    assert outcomes(done) == expected, done.stdout
    assert "was killed by SIGSEGV before the test ended" in done.stdout and "ended with status 7" in done.stdout
    assert "out of time" in done.stdout
    pid = int(open(os.path.join(os.path.dirname(done.args[-1]), "pid")).read())
    assert not os.path.exists(f"/proc/{pid}"), "the body runs on"


def test_where_nothing_can_be_counted_the_test_fails_and_says_why(session):
    done = session(
        """
        @pytest.mark.limit_copies("1 GB")
        def test_limited(): pass
        def test_other(): pass
        """,
        "-v",
        prepare="""
        from cowbell_fork import _count
        library = _count.library()
        class Old:
            def __getattr__(self, name): return getattr(library, name)
            def cowbell_count_enable(self, failure):
                failure._obj.kind, failure._obj.errno = 1, 22
                return -1
        _count.library = lambda old=Old(): old
        """,
    )
    assert outcomes(done) == {"test_limited": "FAILED", "test_other": "PASSED"}, done.stdout
    assert "nothing can be counted here: Linux" in done.stdout and "it takes Linux 6.7" in done.stdout, done.stdout


TOOL = os.environ.get("COWBELL_TOOL", "")


@pytest.mark.skipif(not TOOL, reason="COWBELL_TOOL does not name the cowbell tool")
def test_a_failure_names_the_lines_where_they_were_asked_for(session, monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(TOOL) + os.pathsep + os.environ["PATH"])
    # In CI pytest repeats each failure in full at the end.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    body = """
        @pytest.fixture(scope="module")
        def large():
            area = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE)
            area.madvise(mmap.MADV_NOHUGEPAGE)
            for at in range(0, 200 << 20, PAGE): area[at] = 1
            yield area
        @pytest.mark.limit_copies("2 MB", lines=True)
        def test_asks(large): write(large, 200)
        @pytest.mark.limit_copies("2 MB")
        def test_does_not_ask(area): write(area, 3)
        @pytest.mark.limit_copies("9 MB", lines=True)
        def test_stays_below(area): write(area, 3)
        @pytest.mark.limit_copies("9 MB", limes=True)
        def test_is_wrong(area): pass
    """
    done = session(body, "-v")
    expected = {"test_asks": "FAILED", "test_does_not_ask": "FAILED", "test_stays_below": "PASSED", "test_is_wrong": "ERROR"}
    assert outcomes(done) == expected, done.stdout
    assert "takes one argument" in done.stdout and done.stdout.count("names the lines") == 1, done.stdout
    assert re.search(r"by lines:\n +[\d,]+ .*test_example.py:\d+ in write: for at in range", done.stdout) or (
        "by which lines is not known: " in done.stdout
    ), done.stdout
