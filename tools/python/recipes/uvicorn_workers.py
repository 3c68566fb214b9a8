"""uvicorn in workers that are forked.   usage: python3 uvicorn_workers.py [--plain] [COUNT]

`uvicorn --workers` starts its workers afresh, so that each loads the data anew: they inherit nothing. So bind the
socket, load and freeze, and fork; each worker serves the same socket.
"""

import asyncio
import os
import signal
import socket
import sys
import urllib.request

import cowbell_fork
import uvicorn
from work import load, read, show

COUNT = next((int(arg) for arg in sys.argv[1:] if arg.isdigit()), 1_000_000)
data = load(COUNT)


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = f"{os.getpid()} {read(data):.2f}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def serve(listening):
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
    asyncio.run(server.serve(sockets=[listening]))


def fork_workers(listening, count):
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            serve(listening)
            os._exit(0)
        pids.append(pid)
    return pids


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0))
    if "--plain" not in sys.argv:
        cowbell_fork.freeze(data)  # before the workers are forked
    pids = fork_workers(listening, 2)
    workers = {}
    try:
        url = "http://127.0.0.1:%d" % listening.getsockname()[1]
        while len(workers) < 2:
            pid, mib = urllib.request.urlopen(url, timeout=60).read().split()
            workers[int(pid)] = max(float(mib), workers.get(int(pid), 0))
        show("uvicorn, " + ("plain" if "--plain" in sys.argv else "frozen"), workers)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
