"""The tool names the line that helps, and proves it where it was added."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

TOOL = os.environ.get("COWBELL_TOOL", "")
pytestmark = pytest.mark.skipif(not TOOL, reason="COWBELL_TOOL does not name the cowbell tool")

JOB = """
    import os, sys
    DATA = [f"string number {n}" for n in range(200_000)]
    FREEZE
    pid = os.fork()
    if pid == 0:
        kept = list(DATA)  # each text is counted once more
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def looked_at(tmp_path, line, *arguments):
    """A job with that line before the fork, under the tool; what the tool wrote."""
    job, report = tmp_path / "job.py", tmp_path / "report"
    job.write_text(textwrap.dedent(JOB).replace("FREEZE", line))
    done = subprocess.run(
        [TOOL, "run", *arguments, "-o", str(report), "--force", "--", sys.executable, str(job)],
        capture_output=True, text=True, timeout=120, env=dict(os.environ, PYTHONPATH=os.environ["COWBELL_PACKAGE"]),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return report.read_text()


def of_children(text):
    report = json.loads(text)
    return sum(one["copied_pages"] for one in report["intervals"] if one["role"] == "child")


def test_the_tool_prints_the_line_and_proves_it_once_it_is_there(tmp_path):
    said = " ".join(looked_at(tmp_path, "pass", "-v").split())
    line = "import cowbell_fork; cowbell_fork.freeze(DATA)"
    # Where the tool sees counts of references; of stripped builds of 3.14 and 3.15 it may take them for real writes.
    if sys.version_info < (3, 14) or "counts references" in said:
        assert line in said, said
    plain, frozen = (of_children(looked_at(tmp_path, added, "--mode", "count", "--json")) for added in ("pass", line))
    # A child that is set up and ends copies some 150 to 180 pages, whatever it inherits.
    assert plain > 2000 and frozen < 250, (plain, frozen)
    # Nothing of what is left is blamed on reading the data.
    report = json.loads(looked_at(tmp_path, line, "--json"))
    lines = [of["text"] for of in report["script"]["lines"] if of["copied_pages_estimated"] > 100]
    assert not any("kept = list" in (text or "") for text in lines), lines
