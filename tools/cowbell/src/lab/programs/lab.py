"""Parts that the programs of `cowbell lab` share. A program tells its figures as the last line of its output, as JSON."""
import json
import os
import signal
import socket
import subprocess

#: A server or a job that takes longer than this many seconds has failed.
PATIENCE = 100

# Whatever hangs, this program is killed after so many seconds, and its servers end with it.
signal.alarm(6 * PATIENCE)


def tell(**figures):
    print(json.dumps(figures), flush=True)


def freeze(data):
    """Makes the data immortal, as a user of CPython 3.12 and later would."""
    import cowbell_fork

    cowbell_fork.freeze(data)


def listening(folder):
    """A listening socket that a server inherits, so that whoever connects waits for it, and need not look whether it is there."""
    at = socket.socket(socket.AF_UNIX)
    at.bind(os.path.join(folder, "socket"))
    at.listen(128)
    return at


def answers(path, times):
    """The bodies of the answers to requests that are all under way at once."""
    waiting = []
    for _ in range(times):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(path)
        connection.sendall(b"GET / HTTP/1.0\r\nHost: lab\r\n\r\n")
        waiting.append(connection)
    for connection in waiting:
        with connection, connection.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
        if b" 200 " not in head:
            raise SystemExit(f"the server answered {head!r}")
        yield body


def ask_all(path, workers):
    """Asks until so many workers have answered, each with its process id and what it read; tells what that was."""
    seen, read = set(), set()
    for _ in range(1000):
        for body in answers(path, 2 * workers):
            pid, _, what = body.decode().partition(" ")
            seen.add(pid)
            read.add(what)
        if len(seen) >= workers:
            (what,) = read
            return what
    raise SystemExit(f"{len(seen)} of {workers} workers answered a thousand times")


def stopped(server):
    """Asks a server to end, and waits until it has."""
    server.send_signal(signal.SIGTERM)
    if server.wait(PATIENCE) not in (0, -signal.SIGTERM):
        raise SystemExit(f"the server ended with {server.returncode}")


def started(command, **options):
    """Starts a server that ends when this program does, whatever ends it."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], **options)


def wait_for(lines, what):
    """Reads a server's messages until one says so."""
    said = []
    for line in lines:
        said.append(line)
        if what in line.lower():
            return
    raise SystemExit("the server ended: " + "".join(said[-3:]).strip())


def tree(pid):
    """A process and all that descend from it."""
    yield pid
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as children:
            for child in children.read().split():
                yield from tree(int(child))


def together(pid):
    """The memory of a process and all that descend from it, each page counted once, in bytes; None where it may not be read."""
    total = 0
    try:
        for process in tree(pid):
            with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as lines:
                total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    except PermissionError:
        return None
    return total


class Meeting:
    """Where workers wait once they are done, so that none takes another's job, and their parent weighs all of them."""

    def __init__(self, context, workers):
        self.done, self.weighed = context.Barrier(workers + 1), context.Barrier(workers + 1)

    def work_is_done(self):
        self.done.wait(PATIENCE)
        self.weighed.wait(PATIENCE)

    def weigh(self):
        self.done.wait(PATIENCE)
        bytes = together(os.getpid())
        self.weighed.wait(PATIENCE)
        return bytes


def available():
    """Free memory, as free(1) says, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
