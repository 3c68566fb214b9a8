"""granian with workers that are forked.   usage: python3 granian_workers.py [--plain] [COUNT]

Its workers are started as multiprocessing starts processes: forked until 3.13, and since 3.14 from a server that has
not loaded the application. Set the method to fork, and load the application before: workers then have it already.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request

import cowbell_fork
from work import load, read, show

data = None


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = f"{os.getpid()} {read(data):.2f}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def serve(port):
    """What a program of yours does."""
    global data
    from granian import Granian

    multiprocessing.set_start_method("fork")
    # The module that granian will be told of is this one, under its own name.
    sys.modules["granian_workers"] = sys.modules[__name__]
    data = load(next((int(arg) for arg in sys.argv[1:] if arg.isdigit()), 1_000_000))
    if "--plain" not in sys.argv:
        cowbell_fork.freeze(data)  # before the workers are forked
    Granian("granian_workers:app", interface="asgi", workers=2, port=port, websockets=False, log_enabled=False).serve()


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = os.fork()
    if server == 0:
        serve(port)
        os._exit(0)
    workers = {}
    try:
        while len(workers) < 2:
            try:
                pid, mib = urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60).read().split()
            except urllib.error.URLError:
                if os.waitpid(server, os.WNOHANG)[0]:
                    sys.exit("granian did not start")
                time.sleep(0.1)  # it is loading
                continue
            workers[int(pid)] = max(float(mib), workers.get(int(pid), 0))
        show("granian, " + ("plain" if "--plain" in sys.argv else "frozen"), workers)
    finally:
        os.kill(server, signal.SIGTERM)
        os.waitpid(server, 0)
