"""The comparison of docs/PYTHON.md, at a hundredth of its size: each way that needs no other package runs, and is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from xml.etree import ElementTree

from kit import HERE


def test_each_way_is_measured_and_drawn(tmp_path):
    ways = ["plain", "gc", "freeze", "bytes", "shared", "shareable", "manager"]
    path = os.pathsep.join([os.environ["COWBELL_PACKAGE"], os.environ.get("PYTHONPATH", "")])
    chart = tmp_path / "chart.svg"
    said = subprocess.run(
        [sys.executable, os.path.join(HERE, "peers.py"), "--share", "0.03", "--rounds", "1", "--chart", str(chart), *ways],
        capture_output=True, text=True, timeout=120, env=dict(os.environ, PYTHONPATH=path), cwd=tmp_path,
    )
    assert said.returncode == 0, said.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.stdout.splitlines()]
    assert [len(row) for row in rows] == [7] * (2 + len(ways)), said.stdout
    own = {way: float(row[3]) for way, row in zip(ways, rows[2:])}
    # 90,000 str, of 76 bytes each.
    assert min(own["plain"], own["gc"]) > 5 and max(own["freeze"], own["bytes"], own["shared"], own["manager"]) < 1, own
    drawn = ElementTree.parse(chart).getroot()
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert [row[0].replace("`", "") for row in rows[2:]] == [text for text in texts if not re.fullmatch(r"[\d.]+", text)][3:]
