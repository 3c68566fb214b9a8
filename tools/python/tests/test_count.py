"""What a child counts itself, against the cowbell tool's count of the same child and against what each page went through."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from kit import HERE, run

TOOL = os.environ.get("COWBELL_TOOL", "")

#: A child that reads what it inherited, counts, and is gone before it writes anything else.
READER = """
    import json, os, signal, sys, cowbell_fork
    data = [f"string number {n}" for n in range(200_000)]
    if "frozen" in sys.argv:
        cowbell_fork.freeze(data)
    cowbell_fork.count_copies()
    pid = os.fork()
    if pid == 0:
        def tell(file):
            found = cowbell_fork.copied()
            os.write(file, json.dumps([os.getpid(), found.pages, found.before_max // found.page_size, found.new]).encode())
        # The first call writes memory that the last one has then.
        nobody = os.open(os.devnull, os.O_WRONLY)
        for _ in range(2): tell(nobody)
        for text in data: pass
        tell(1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
"""


def counted_by_both(tmp_path, *arguments):
    """Pages of the child: as it counted itself, at most before that, and as the tool counted."""
    job, report = tmp_path / "job.py", tmp_path / "report.json"
    job.write_text(textwrap.dedent(READER))
    done = subprocess.run(
        [TOOL, "run", "--mode", "count", "--json", "-o", str(report), "--force", "--", sys.executable, str(job), *arguments],
        capture_output=True, text=True, timeout=120, env=dict(os.environ, PYTHONPATH=os.environ["COWBELL_PACKAGE"]),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pid, pages, before, _ = json.loads(done.stdout)
    (interval,) = [one for one in json.loads(report.read_text())["intervals"] if one["pid"] == pid]
    return pages, before, interval["copied_pages"]


@pytest.mark.skipif(not TOOL, reason="COWBELL_TOOL does not name the cowbell tool")
@pytest.mark.parametrize("how", ["plain", "frozen"])
def test_a_child_counts_what_the_tool_counts_of_it(tmp_path, how):
    if how == "frozen" and sys.version_info < (3, 12):
        pytest.skip("no immortal objects before 3.12")
    own, before, tool = counted_by_both(tmp_path, how)
    # What was copied before counting began, and what the last call has written, besides what the calls before it had.
    assert own <= tool <= own + before + 32, (own, before, tool)
    if how == "plain":
        assert own > 2000 and before < own / 10, (own, before)


def test_alone_it_counts_as_much_as_beside_the_tool(tmp_path):
    """Its own arming, in place of the tool's."""
    if not TOOL:
        pytest.skip("COWBELL_TOOL does not name the cowbell tool")
    beside, before, tool = counted_by_both(tmp_path)
    _, alone, before_alone, new = json.loads(run(READER))
    # Two runs: memory is laid out a little differently each time.
    assert abs(alone - beside) <= before + before_alone + 64, (alone, beside, before, before_alone)
    assert new < 1 << 20, new


#: Mappings of files by whose names the counts of each can be told exactly.
CASES = """
    import json, mmap, os, sys, tempfile, cowbell_fork
    from cowbell_fork import watch
    PAGE = mmap.PAGESIZE
    def mapped(name, pages, touched=True):
        path = os.path.join(FOLDER, name)
        with open(path, "wb") as file: file.truncate(pages * PAGE)
        with open(path, "r+b") as file:
            area = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
        if touched:
            for at in range(pages): area[at * PAGE] = 1
        return area
    FOLDER = tempfile.mkdtemp()
    def of(found, name):
        return dict(found.places).get(os.path.join(FOLDER, name), 0) // PAGE
    def in_child(body):
        ready, go = os.pipe(); answer, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(tell, b" ")  # counting has begun
                os.read(ready, 1)
                os.write(tell, json.dumps(body()).encode())
            except BaseException as error:
                os.write(tell, json.dumps(repr(error)).encode())
            os._exit(0)
        os.read(answer, 1)
        yield pid
        os.write(go, b"x")
        said = json.loads(os.read(answer, 100_000))
        assert os.waitpid(pid, 0)[1] == 0
        for end in (ready, go, answer, tell): os.close(end)
        yield said
"""


def as_user(program, user):
    """Runs a program as root or as an ordinary user, who cannot read page frames."""
    if user == "root":
        if os.geteuid() != 0:
            pytest.skip("not root")
        return run(program)
    if os.geteuid() != 0:
        return run(program)
    # That user may be shut out of the folders of the package and of the interpreter.
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("no Python that every user may execute")
    folder = "/tmp/cowbell-count-%d" % os.getpid()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(os.path.join(os.environ["COWBELL_PACKAGE"], "cowbell_fork"), folder + "/cowbell_fork")
        os.chmod(folder, 0o755)
        nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
        done = subprocess.run(
            [*nobody, "/usr/bin/python3", "-c", textwrap.dedent(program)],
            capture_output=True, text=True, timeout=120, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": folder}, cwd="/",
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_each_page_is_counted_for_what_happened_to_it(user):
    is_root = user == "root"
    as_user(
        CASES
        + f"""
    is_root = {is_root}
    read, written, first = mapped("read", 50), mapped("written", 60), mapped("first", 70, touched=False)
    parents, given = mapped("parents", 40), mapped("given", 30)
    cowbell_fork.count_copies()
    def body():
        cowbell_fork.copied()
        before = cowbell_fork.copied()
        sum(read[at * PAGE] for at in range(50))
        for at in range(0, 60, 2): written[at * PAGE] = 2
        for at in range(0, 60, 2): written[at * PAGE + 9] = 3
        for at in range(0, 70, 7): first[at * PAGE] = 2
        for at in range(40): parents[at * PAGE] = 2
        given.close()
        new = mmap.mmap(-1, 90 * PAGE)  # shared memory: not this process' own
        own = mmap.mmap(-1, 80 * PAGE, flags=mmap.MAP_PRIVATE)
        for at in range(80): own[at * PAGE] = new[at * PAGE] = 1
        after = cowbell_fork.copied()
        return [of(after, name) for name in ("read", "written", "first", "parents", "given")] + [
            (after.new - before.new) // PAGE, (after.gone - before.gone) // PAGE, (after.reused - before.reused) // PAGE,
            after.unsure == 0, str(after)]
    child = in_child(body)
    pid = next(child)
    for at in range(0, 40, 4): parents[at * PAGE] = 3  # copies of the parent's; the child has the originals alone
    got = next(child)
    assert got[:3] == [0, 30, 10], got
    # Without page frames a page of its own that was reused cannot be told from a copy.
    assert got[3] == (30 if is_root else 40) and got[4] == 0, got
    assert 80 <= got[5] <= 84 and got[6] == 30, got
    # The parent has written a few other pages as well meanwhile.
    assert (10 <= got[7] <= 20 if is_root else got[7] == 0) and got[8] == is_root, got
    assert ("only root can tell" in got[9]) == (not is_root), got
""",
        user,
    )


def test_a_block_is_counted_apart_and_may_have_a_limit():
    run(
        CASES
        + """
    area, later = mapped("area", 100), mapped("later", 100)
    cowbell_fork.count_copies()
    def body():
        for at in range(20): area[at * PAGE] = 2
        with watch() as outer:
            for at in range(10, 50): area[at * PAGE] = 3
            with watch("1 MB") as inner:
                for at in range(100): later[at * PAGE] = 2
        # The interpreter writes some of its own memory each time, at first on pages that it has not copied yet.
        for _ in range(50):
            nothing = watch()
            with nothing: pass
        failed = []
        try:
            with watch(max_bytes=20 * PAGE):
                for at in range(50, 100): area[at * PAGE] = 2
        except cowbell_fork.CopiesExceeded as error:
            failed.append([of(error.copied, "area"), "80.0 KiB allowed" in str(error)])
        try:
            with watch(0):
                area[0] = 3
                raise KeyError("of the block's own")
        except KeyError:
            failed.append("KeyError")
        try:
            cowbell_fork.assert_copies(10 * PAGE)
        except AssertionError as error:
            failed.append("copied" in str(error))
        cowbell_fork.assert_copies("1 GB")
        return [of(outer.copied, "area"), of(outer.copied, "later"), of(inner.copied, "area"), of(inner.copied, "later"),
                nothing.copied.pages, failed]
    child = in_child(body); next(child); got = next(child)
    assert got[:4] == [30, 100, 0, 100], got
    assert got[4] <= 1, got
    assert got[5] == [[50, True], "KeyError", True], got
"""
    )


def test_each_process_counts_from_its_own_fork():
    run(
        CASES
        + """
    area = mapped("area", 100)
    cowbell_fork.count_copies()
    cowbell_fork.count_copies()
    doors = lambda: sum(os.readlink("/proc/self/fd/" + fd) == "anon_inode:[userfaultfd]"
                        for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd) or True
                        if os.path.islink("/proc/self/fd/" + fd))
    def grandchild():
        first = of(cowbell_fork.copied(), "area")
        for at in range(30): area[at * PAGE] = 5
        return [first, of(cowbell_fork.copied(), "area"), doors()]
    def body():
        for at in range(10): area[at * PAGE] = 2
        inner = in_child(grandchild); next(inner)
        got = next(inner)
        return [got, of(cowbell_fork.copied(), "area"), doors()]
    child = in_child(body); next(child); got = next(child)
    assert got == [[0, 30, 1], 10, 1], got
    assert doors() == 0
    # Programs are executed as before, and count nothing.
    import subprocess
    said = subprocess.run([sys.executable, "-c", "import cowbell_fork; cowbell_fork.copied()"], preexec_fn=lambda: None,
                          capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    assert said.returncode == 1 and "call cowbell_fork.count_copies() before" in said.stderr, said
"""
    )


def test_where_nothing_is_counted_it_says_why():
    run(
        CASES
        + """
    def refusal():
        try: cowbell_fork.copied()
        except cowbell_fork.NotCounted as error: return str(error)
    assert "count_copies() before this process is forked" in refusal()
    cowbell_fork.count_copies()
    assert "in a child" in refusal()
    def closes():
        os.closerange(3, 20)
        return refusal()
    pid = os.fork()
    if pid == 0:
        try: said = closes()
        except BaseException as error: said = repr(error)
        os._exit(0 if said and "descriptor of the userfaultfd was closed" in said else 1)
    assert os.waitpid(pid, 0)[1] == 0
    for wrong in ("2 parrots", "", True, -1, None, 1.5):
        try: cowbell_fork.assert_copies(wrong)
        except ValueError as error: assert "is no size" in str(error)
        else: raise AssertionError(wrong)
    from cowbell_fork._count import parse_size
    assert [parse_size(size) for size in (7, "2 MB", "1.5KiB", "3", "1g")] == [7, 2 << 20, 1536, 3, 1 << 30]
"""
    )


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not here, which makes the call fail")
@pytest.mark.parametrize(
    "fails, words",
    [("userfaultfd:error=EPERM", "seccomp"), ("ioctl:error=EINVAL:when=1", "it takes Linux 6.7")],
)
def test_a_kernel_that_cannot_count_is_refused_by_name(fails, words):
    program = """
import os, sys
import cowbell_fork
try:
    cowbell_fork.count_copies()
except cowbell_fork.Unsupported as error:
    print(error)
    raise SystemExit(0)
raise SystemExit("not refused")
"""
    environment = dict(os.environ, PYTHONPATH=os.environ["COWBELL_PACKAGE"])
    # Python itself makes ioctls of files it opens, so the one of UFFDIO_API is found by its place among all.
    if fails.startswith("ioctl"):
        trace = ["strace", "-f", "-e", "trace=ioctl", sys.executable, "-c", program]
        said = subprocess.run(trace, capture_output=True, text=True, env=environment, timeout=120).stderr
        calls = [line for line in said.splitlines() if "ioctl(" in line]
        nth = next(at for at, line in enumerate(calls, 1) if "UFFDIO_API" in line)
        fails = f"ioctl:error=EINVAL:when={nth}"
    done = subprocess.run(
        ["strace", "-f", "-o", os.devnull, "-e", f"inject={fails}", sys.executable, "-c", program],
        capture_output=True, text=True, env=environment, timeout=120, cwd=HERE,
    )
    assert done.returncode == 0 and words in done.stdout, done.stdout + done.stderr
