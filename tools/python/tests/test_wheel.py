"""The wheel, installed into clean environments. Only where COWBELL_WHEEL names one: building it takes minutes."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile

import pytest
from kit import HERE

#: Where the pip lies that tools/python/setup brought.
IMPORTED = os.path.dirname(os.path.dirname(os.path.abspath(pytest.__file__)))

WHEEL = os.environ.get("COWBELL_WHEEL", "")
SDIST = os.environ.get("COWBELL_SDIST", "")
pytestmark = pytest.mark.skipif(not WHEEL, reason="COWBELL_WHEEL does not name a wheel (tools/build-wheel prints one)")


def interpreters():
    """One of each version from 3.8 on."""
    if not WHEEL:
        return [pytest.param(0, "", id="none")]
    found = {}
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    unpacked = os.path.join(IMPORTED, "..", "cpython/root/usr/bin/python3.??")
    here = [sys.executable, "/usr/bin/python3", *glob.glob(f"{root}/versions/*/bin/python3"), *glob.glob(unpacked)]
    for python in here:
        if os.path.exists(python):
            ask = "import sys; print(sys.version_info[0] * 100 + sys.version_info[1])"
            version = int(subprocess.check_output([python, "-c", ask], env={"PATH": "/usr/bin:/bin"}))
            if version >= 308:
                found.setdefault(version, python)
    return [pytest.param(version, python, id=f"3.{version % 100}") for version, python in sorted(found.items())]


@pytest.fixture
def installed(tmp_path):
    """Installs the wheel for an interpreter, and returns how to run that environment's programs."""

    def install(python):
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        where = tmp_path / "venv"
        # With the pip that the tests brought: not every interpreter here has its own.
        subprocess.run([python, "-m", "venv", "--without-pip", str(where)], check=True, env=clean)
        with zipfile.ZipFile(WHEEL) as wheel:
            record = next(name for name in wheel.namelist() if name.endswith("/RECORD"))
            assert record.startswith("cowbell_fork-")
        pip = [str(where / "bin/python3"), "-m", "pip", "install", "--no-index", "--no-deps", "-q", WHEEL]
        try:
            subprocess.run(pip, check=True, env=dict(clean, PYTHONPATH=IMPORTED), capture_output=True)
        except subprocess.CalledProcessError:
            # That pip is too new for it; its own is of its age.
            subprocess.run([python, "-m", "venv", str(where)], check=True, env=clean)
            subprocess.run(pip, check=True, env=clean)

        # As an activated environment has it: the job's python3 is this one.
        active = dict(clean, PATH=f"{where / 'bin'}:{clean['PATH']}")

        def run(name, *arguments):
            return subprocess.run(
                [str(where / "bin" / name), *arguments], capture_output=True, text=True, env=active, timeout=120, cwd=tmp_path
            )

        return run

    return install


JOB = """
import os, sys
import cowbell_fork
data = [f"string number {n}" for n in range(300_000)]
if "frozen" in sys.argv:
    cowbell_fork.freeze(data)
pid = os.fork()
if pid == 0:
    for text in data: pass
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


#: A child's own count, with any version.
COUNTS = """
import mmap, os, cowbell_fork
area = mmap.mmap(-1, 200 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
for at in range(200): area[at * mmap.PAGESIZE] = 1
cowbell_fork.count_copies()
if os.fork() == 0:
    for at in range(0, 200, 2): area[at * mmap.PAGESIZE] = 2
    print(cowbell_fork.copied().pages, flush=True)
    os._exit(0)
os.wait()
"""

#: The lines of a block, by the command that the wheel has; or the reason, which is not that the command is missing.
LINES = """
import mmap, os, cowbell_fork
os.environ["PATH"] = "/nowhere"
area = mmap.mmap(-1, 30_000 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
for at in range(30_000): area[at * mmap.PAGESIZE] = 1
cowbell_fork.count_copies()
if os.fork() == 0:
    with cowbell_fork.watch(lines=True) as block:
        for at in range(30_000): area[at * mmap.PAGESIZE] = 2
    print(block.lines_unknown or [line.line for line in block.lines], flush=True)
    os._exit(0)
os.wait()
"""

#: What pytest finds by itself.
ENTRY = """
from importlib.metadata import distribution
print(*[entry.value for entry in distribution("cowbell-fork").entry_points if entry.group == "pytest11"])
"""


@pytest.mark.parametrize("version, python", interpreters())
def test_it_installs_and_runs_in_a_clean_environment(installed, version, python, tmp_path):
    run = installed(python)
    said = run("cowbell", "--version")
    assert said.returncode == 0 and said.stdout.startswith("cowbell "), said
    job = tmp_path / "job.py"
    job.write_text(textwrap.dedent(JOB))

    def copied(*arguments):
        """Pages, as the tool counts them."""
        said = run("cowbell", "run", "--mode", "count", "--json", "-o", "report.json", "--force", "--", "python3", "job.py", *arguments)
        assert said.returncode == 0, said.stderr
        return total(json.loads((tmp_path / "report.json").read_text()))

    plain = copied()
    assert plain > 3000, plain
    counts = run("python3", "-c", COUNTS)
    assert counts.returncode == 0 and int(counts.stdout) > 100, counts
    lines = run("python3", "-c", LINES)
    assert lines.returncode == 0 and "install the wheel" not in lines.stdout, lines
    if os.geteuid() == 0:
        # On a busy machine no stack may be taken in that time.
        assert re.match(r"\[\d|of [\d,]+ pages copied, none was met", lines.stdout), lines
    entry = run("python3", "-c", ENTRY)
    assert entry.stdout.split() == ["cowbell_fork.pytest_plugin"], entry
    if version >= 312:
        assert copied("frozen") < plain / 20
    else:
        refused = run("python3", "job.py", "frozen")
        assert refused.returncode == 1 and "no immortal objects before 3.12" in refused.stderr, refused.stderr
        assert re.search(r"Unsupported: CPython 3\.\d+ counts references", refused.stderr), refused.stderr


def blocks(name, language):
    """The code of a document's section on Python."""
    with open(os.path.join(HERE, "../../..", name)) as file:
        section = file.read().split("\n## Python", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


def test_what_a_newcomer_copies_from_the_readme(tmp_path):
    """Word for word, where no Rust is."""
    newer = [param.values[1] for param in interpreters() if param.values[0] >= 312]
    # Debian's have no venv with pip.
    own = [python for python in newer if subprocess.run([python, "-c", "import ensurepip, venv"]).returncode == 0]
    if not own:
        pytest.skip("no CPython from 3.12 on with venv and pip is here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").symlink_to(own[0])
    shutil.copy(WHEEL, tmp_path)
    first, mended = blocks("README.md", "sh")
    clean = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "PIP_NO_INDEX": "1"}
    said = subprocess.run(
        ["bash", "-e"], input=f"{first}\necho ---- >&2\n{mended}", capture_output=True, text=True, env=clean, cwd=tmp_path, timeout=300
    )
    assert said.returncode == 0, said.stderr
    before, after = said.stderr.split("----\n")
    assert "\nCOPIED: 1 child copied 1" in f"\n{before}", said.stderr
    assert "import cowbell_fork; cowbell_fork.freeze(DATA)" in before, said.stderr
    assert re.search(r"^SHARED: all is well: 1 child copied [\d.]+ KiB", after, re.M), said.stderr
    assert re.search(r"^300,001 objects made immortal", said.stdout, re.M), said.stdout


def total(report):
    """Copied pages in all, of the tool's report."""
    return report["totals"]["copied_pages"]


@pytest.mark.skipif(not SDIST, reason="COWBELL_SDIST does not name a source distribution (tools/build-sdist prints one)")
def test_the_source_distribution_builds_with_rust_from_that_file_alone(tmp_path):
    where = tmp_path / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", str(where)], check=True)
    # Rust and PyPI are needed; nothing of the work tree but what it has compiled of other crates.
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(where / "bin/pip"), "install", "-q", "--no-deps", SDIST], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = subprocess.run([str(where / "bin/cowbell"), "--version"], capture_output=True, text=True)
    assert said.stdout.startswith("cowbell "), said
    counts = subprocess.run([str(where / "bin/python3"), "-c", COUNTS], capture_output=True, text=True, cwd=tmp_path)
    assert counts.returncode == 0 and int(counts.stdout) > 100, counts


@pytest.mark.skipif(not SDIST, reason="COWBELL_SDIST does not name a source distribution (tools/build-sdist prints one)")
def test_cargo_installs_the_command_from_the_source_distribution(tmp_path):
    subprocess.run(["tar", "-xzf", SDIST, "-C", str(tmp_path)], check=True)
    (unpacked,) = tmp_path.iterdir()
    root = tmp_path / "installed"
    # As the build of the wheel sets them: then what that compiled of other crates serves here, too.
    environment = {**os.environ, "CARGO_PROFILE_RELEASE_STRIP": "symbols", "CARGO_PROFILE_RELEASE_DEBUG": "0"}
    command = ["cargo", "install", "--quiet", "--locked", "--path", str(unpacked / "tools/cowbell"), "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert os.listdir(root / "bin") == ["cowbell"]
    child = "import os; x = bytearray(1 << 20); os.fork() or [x.__setitem__(at, 1) for at in range(0, 1 << 20, 4096)]"
    report = [str(root / "bin/cowbell"), "run", "--json", "-o", "report", "--", "/usr/bin/python3", "-c", child]
    said = subprocess.run(report, capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    with open(tmp_path / "report") as file:
        assert total(json.load(file)) >= 256
    for asked in (["man"], ["completions", "bash"]):
        assert "cowbell" in subprocess.run([str(root / "bin/cowbell"), *asked], capture_output=True, text=True, check=True).stdout
