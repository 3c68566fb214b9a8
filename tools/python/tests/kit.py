"""What the tests and the programs they start have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

HERE = os.path.dirname(os.path.abspath(__file__))


def private_dirty():
    """KiB that only this process has, and wrote or was given a copy of."""
    file = os.open("/proc/self/smaps_rollup", os.O_RDONLY)
    try:
        for line in os.read(file, 4000).splitlines():
            if line.startswith(b"Private_Dirty:"):
                return int(line.split()[1])
    finally:
        os.close(file)
    raise AssertionError("smaps_rollup has no Private_Dirty")


def in_child(function, *arguments):
    """What a function returns in a forked child; an error of it, or the child's death, is one here.

    The child begins when the parent has come to rest: a page that the parent copies meanwhile becomes the child's own,
    and would be counted there.
    """
    reader, writer = os.pipe()
    rested, rest = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(rested, 1)
            answer = [function(*arguments), None]
        except BaseException as error:
            answer = [None, f"{type(error).__name__}: {error}"]
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    os.write(rest, b"x")
    text = b""
    while part := os.read(reader, 65536):
        text += part
    for end in (reader, rested, rest):
        os.close(end)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status}"
    value, error = json.loads(text)
    assert error is None, error
    return value


def run(program, *arguments, interpreter=sys.executable, status=0, timeout=300):
    """Runs a program, given as text or as a file's name, in a new interpreter, and returns what it printed.

    What becomes immortal stays so: each case has a process of its own.
    """
    start = [interpreter, "-X", "faulthandler"]
    if program.endswith(".py"):
        start.append(os.path.join(HERE, program))
    else:
        start += ["-c", textwrap.dedent(program)]
    path = [os.environ.get("COWBELL_PACKAGE", ""), HERE, os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path))
    done = subprocess.run(
        start + list(arguments), capture_output=True, text=True, timeout=timeout, env=environment, cwd=HERE
    )
    assert done.returncode == status, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
