"""The lines that a block copied by: told by the cowbell tool, which attaches for the time; and that nothing of it is left, whatever happens."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from kit import HERE

TOOL = os.environ.get("COWBELL_TOOL", "")
pytestmark = pytest.mark.skipif(not TOOL, reason="COWBELL_TOOL does not name the cowbell tool")

CASE = """
    import json, mmap, os, signal, subprocess, sys, threading, cowbell_fork
    PAGE = mmap.PAGESIZE
    def mapped(pages):
        area = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE)
        area.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(pages): area[at * PAGE] = 1
        return area
    def tools():
        "Processes that watch this one."
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file: words = file.read().split(b"\\0")
            except OSError: continue
            if b"--control" in words and str(os.getpid()).encode() in words: found.append(int(pid))
        return found
    def watched(block):
        "Whether the tool did its work; on a busy machine it may take no stack in that time."
        return bool(block.lines) or "none was met with a stack" in block.lines_unknown
    def child(body):
        cowbell_fork.count_copies()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                body()
                status = 0
            except BaseException:
                import traceback; traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
"""


def started(program, path=None, **more):
    """A program that finds the tool on its path."""
    environment = dict(
        os.environ,
        PYTHONPATH=os.environ["COWBELL_PACKAGE"],
        PATH=(os.path.dirname(TOOL) + os.pathsep + os.environ["PATH"]) if path is None else path,
    )
    command = [sys.executable, "-c", textwrap.dedent(CASE) + textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=HERE, **more)


def run(program, path=None):
    process = started(program, path)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, said + errors
    return said


def told():
    """Whether this user has lines here."""
    answer = run(
        """
        area = mapped(30_000)
        def body():
            with cowbell_fork.watch(lines=True) as block:
                for at in range(30_000): area[at * PAGE] = 2
            print(json.dumps([block.lines_unknown, len(block.lines)]))
        child(body)
        """
    )
    unknown, lines = json.loads(answer)
    assert (unknown is None) == (lines > 0)
    return None if unknown and "none was met with a stack" in unknown else unknown


@pytest.fixture(scope="module")
def lines_are_told():
    unknown = told()
    if unknown is not None:
        pytest.skip(unknown)


def test_lines_have_the_pages_that_they_copied(lines_are_told):
    program = """
        much, little = mapped(30_000), mapped(10_000)
        def body():
            with cowbell_fork.watch() as plain: pass
            with cowbell_fork.watch(lines=True) as block:
                for at in range(30_000):
                    much[at * PAGE] = 2  # the first
                for at in range(10_000):
                    little[at * PAGE] = 2  # the second
            assert 40_000 <= block.copied.pages <= 40_100, block.copied
            if not block.lines and watched(block):
                print("none")
                return
            assert block.lines_unknown is None
            assert all(isinstance(line, cowbell_fork.Line) for line in block.lines)
            for line in block.lines:
                assert line.function == "body" and line.file == "<string>", line
            # On a busy machine a line may be met by no stack: the others' errors know of that.
            first = block.lines[0]
            assert first.line == min(line.line for line in block.lines if line.pages > 20_000), block.lines
            assert abs(first.pages - 30_000) <= max(first.error, 300), block.lines
            assert 39_000 <= sum(line.pages for line in block.lines) <= 41_000, block.lines
            for second in block.lines[1:]:
                assert second.line > first.line or second.pages <= second.error, block.lines
            assert "pages" in str(first)
            # Nothing is left, and nothing is asked for where lines are not.
            assert not tools()
            try: os.waitpid(-1, os.WNOHANG)
            except ChildProcessError: pass
            else: raise AssertionError("there is a child")
            assert plain.lines == () and "were not asked for" in plain.lines_unknown
        child(body)
        """
    for _ in range(10):
        if "none" not in run(program):
            return
    raise AssertionError("no stack was taken in any of ten blocks")


def test_it_leaves_no_descriptor_and_no_thread(lines_are_told):
    run(
        """
        area = mapped(100)
        def body():
            def once():
                with cowbell_fork.watch(lines=True):
                    for at in range(100): area[at * PAGE] = 2
            once()
            before = sorted(os.listdir("/proc/self/fd"))
            for _ in range(3): once()
            assert sorted(os.listdir("/proc/self/fd")) == before
            assert threading.active_count() == 1 and not tools()
        child(body)
        """
    )


def test_an_exception_or_a_signal_within_the_block_ends_the_watch():
    run(
        """
        def body():
            for kind in (KeyError, KeyboardInterrupt, SystemExit):
                try:
                    with cowbell_fork.watch(lines=True) as block:
                        assert block.lines == ()
                        if kind is KeyboardInterrupt:
                            # As a terminal sends it: to all of the group.
                            os.setpgid(0, 0)
                            os.killpg(0, signal.SIGINT)
                            signal.pause()
                        raise kind("of the block's own")
                except kind: pass
                else: raise AssertionError(kind)
                assert isinstance(block.copied.pages, int) and not tools()
        child(body)
        """
    )


def test_processes_that_are_forked_within_the_block_run_on(lines_are_told):
    run(
        """
        area, theirs = mapped(30_000), mapped(5_000)
        def body():
            read, write = os.pipe()
            with cowbell_fork.watch(lines=True) as block:
                for at in range(30_000): area[at * PAGE] = 2
                pid = os.fork()
                if pid == 0:
                    for at in range(5_000): theirs[at * PAGE] = 2
            if pid == 0:
                # It came out of the block as well, in which it was not watched.
                os._exit(0 if block.lines == () and "forked within the block" in block.lines_unknown else 1)
            assert os.waitpid(pid, 0)[1] == 0
            assert 30_000 <= block.copied.pages < 31_000 and not tools()
            assert watched(block) and all("theirs" not in line.source for line in block.lines), block.lines
            # One that outlives the block has the descriptors of the watch.
            with cowbell_fork.watch(lines=True):
                pid = os.fork()
                if pid == 0: signal.pause()
            assert not tools()
            os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        child(body)
        """
    )


@pytest.mark.parametrize("forks", [False, True])
def test_a_process_that_is_killed_within_the_block_leaves_no_watcher(lines_are_told, forks):
    process = started(
        f"""
        forks = {forks}
        """
        + """
        cowbell_fork.count_copies()
        pid = os.fork()
        if pid == 0:
            with cowbell_fork.watch(lines=True):
                other = os.fork() if forks else 0
                if forks and other == 0: signal.pause()
                print(os.getpid(), other, *tools(), flush=True)
                signal.pause()
        os.waitpid(pid, 0)
        """
    )
    pid, other, *watchers = map(int, process.stdout.readline().split())
    assert watchers
    ends = [os.pidfd_open(watcher) for watcher in watchers]
    os.kill(pid, signal.SIGKILL)
    for end in ends:
        assert select.select([end], [], [], 60)[0], "it watches on"
        os.close(end)
    if other:
        # It is no more held than before.
        os.kill(other, signal.SIGKILL)
    process.communicate(timeout=60)


def test_where_lines_cannot_be_told_the_reason_stands_in_their_place(tmp_path):
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    empty.mkdir(), wrong.mkdir()
    old = wrong / "cowbell"
    old.write_text("#!/bin/sh\necho 'error: unexpected argument --control found' >&2\nexit 2\n")
    old.chmod(0o755)
    program = """
        area = mapped(500)
        def body():
            with cowbell_fork.watch(lines=True) as block:
                for at in range(500): area[at * PAGE] = 2
            assert block.copied.pages >= 500 and block.lines == ()
            print(block.lines_unknown)
        child(body)
    """
    assert "install the wheel" in run(program, path=str(empty))
    assert "unexpected argument --control" in run(program, path=f"{wrong}:/usr/bin:/bin")


def test_one_watch_within_another_has_no_lines_but_counts(lines_are_told):
    said = run(
        """
        area = mapped(30_000)
        def body():
            with cowbell_fork.watch(lines=True) as outer:
                with cowbell_fork.watch(lines=True) as inner:
                    for at in range(30_000): area[at * PAGE] = 2
            assert watched(outer) and outer.copied.pages >= inner.copied.pages >= 30_000, outer.lines_unknown
            assert inner.lines == () and not tools()
            print(inner.lines_unknown)
        child(body)
        """
    )
    assert "is traced already" in said, said


def test_a_watcher_that_is_killed_is_said_to_be(lines_are_told):
    said = run(
        """
        area = mapped(3_000)
        def body():
            with cowbell_fork.watch(lines=True) as block:
                for at in range(3_000): area[at * PAGE] = 2
                for pid in tools(): os.kill(pid, signal.SIGKILL)
            assert block.copied.pages >= 3_000 and block.lines == ()
            print(block.lines_unknown)
        child(body)
        """
    )
    assert "ended without a report" in said


def test_an_ordinary_user_has_lines_or_the_reason():
    if os.geteuid() != 0:
        told()
        return
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("no Python that every user may execute")
    folder = "/tmp/cowbell-lines-%d" % os.getpid()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(os.path.join(os.environ["COWBELL_PACKAGE"], "cowbell_fork"), folder + "/cowbell_fork")
        shutil.copy(TOOL, folder + "/cowbell")
        os.chmod(folder, 0o755)
        nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
        program = """
        area = mapped(2000)
        def body():
            with cowbell_fork.watch(lines=True) as block:
                for at in range(2000): area[at * PAGE] = 2
            assert block.copied.pages >= 2000 and not tools()
            assert (block.lines_unknown is None) == bool(block.lines)
            print(block.lines_unknown, *block.lines, sep="\\n")
        child(body)
        """
        done = subprocess.run(
            [*nobody, "/usr/bin/python3", "-c", textwrap.dedent(CASE) + textwrap.dedent(program)],
            capture_output=True, text=True, timeout=120, cwd="/",
            env={"PATH": folder + ":/usr/bin:/bin", "PYTHONPATH": folder},
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
