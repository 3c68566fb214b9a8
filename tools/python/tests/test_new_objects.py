"""Children that sort frozen data, or make new objects of it: what was inherited stays shared, but for the array that is sorted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CHILD = """
import json, os, sys, cowbell_fork
data = [f"string number {n}" for n in range(300_000)]
if sys.argv[2] == "frozen":
    cowbell_fork.freeze(data)
read, write = os.pipe()
cowbell_fork.count_copies()
if os.fork() == 0:
    if sys.argv[1] == "sort":
        data.sort(reverse=True)
    else:
        json.dumps(data)
    found = cowbell_fork.copied()
    os.write(write, json.dumps([found.bytes, sys.getsizeof(data)]).encode())
    os._exit(0)
os.wait()
print(os.read(read, 100).decode())
"""

#: Holes of inherited memory are filled, and the interpreter's own pages written.
OTHERS = 2 << 20


def copied(action, how):
    """Bytes that the child copied, and bytes of the list itself."""
    done = subprocess.run([sys.executable, "-c", CHILD, action, how], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if not done.stdout:
        pytest.skip(done.stderr)
    return json.loads(done.stdout)


def test_a_list_that_is_sorted_is_copied_and_what_lies_in_it_is_not():
    found, array = copied("sort", "frozen")
    assert array <= found <= array + OTHERS


def test_json_of_frozen_data_is_made_without_copying_it():
    found, _ = copied("json", "frozen")
    assert found <= OTHERS
    # Older ones look at each str without counting a reference.
    if sys.version_info >= (3, 14):
        plain, _ = copied("json", "plain")
        assert plain >= 15 << 20
