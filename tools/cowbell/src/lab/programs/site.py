"""usage: site.py preload|each|cowbell KIND reads|idle NUMBERS WORKERS

A server with so many workers, asked until each of them has answered, and told to end. gunicorn with a Flask application, which is
loaded before the fork or by each worker; or a server in Rust, which is part of the tool.
"""
import os
import sys

import lab

way, kind, reads, numbers, workers = *sys.argv[1:5], int(sys.argv[5])
folder = os.getcwd()
socket = lab.listening(folder)
if way in ("preload", "each"):
    command = [sys.executable, "-m", "gunicorn", "--workers", str(workers), "--bind", f"fd://{socket.fileno()}"]
    command += ["--timeout", "100", "--graceful-timeout", "100", "--log-level", "warning", "--chdir", folder]
    command += ["--preload"] * (way == "preload") + ["site_app:app"]
else:
    command = [os.environ["COWBELL"], "lab-server", str(socket.fileno()), numbers, str(workers)]
environment = dict(os.environ, LAB_KIND=kind, LAB_NUMBERS=numbers, LAB_READS=reads)
server = lab.started(command, pass_fds=[socket.fileno()], env=environment)
answer = lab.ask_all(os.path.join(folder, "socket"), workers)
together = lab.together(server.pid)
lab.stopped(server)
lab.tell(**({"answer": answer} if reads == "reads" else {}), together_bytes=together)
