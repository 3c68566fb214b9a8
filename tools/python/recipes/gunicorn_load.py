"""gunicorn and Flask, eight workers over one data set, under load.   usage: gunicorn_load.py [--plain] [COUNT [SECONDS]]

Asks without a pause on four connections; halfway it has gunicorn reload gracefully. Prints the PSS of all its processes over time,
requests a second, and how many failed.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
CONFIG = """
preload_app = True
workers = 8
bind = "127.0.0.1:0"
graceful_timeout = 120
def when_ready(server):
    import os
    if not os.environ.get("RECIPE_PLAIN"):
        import cowbell_fork, flask_app
        server.log.info("%s", cowbell_fork.freeze(flask_app.data))
"""


def tree(pid):
    """The process and all below it."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [pid] + [one for child in file.read().split() for one in tree(int(child))]


def pss_mib(pid):
    """Proportional memory of the server's processes, MiB."""
    total = 0
    for one in tree(pid):
        try:
            with open(f"/proc/{one}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has just ended
    return total / 1024


def start(plain, count):
    environment = dict(os.environ, RECIPE_PLAIN="1" if plain else "", RECIPE_COUNT=count, PYTHONUNBUFFERED="1")
    config = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"gunicorn_load_{os.getpid()}.py")
    with open(config, "w") as file:
        file.write(CONFIG)
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", config, "flask_app:app"], env=environment, cwd=HERE,
        stderr=subprocess.PIPE, text=True,
    )
    url, said = None, []
    while sum("Booting worker" in line for line in said) < 8:
        line = server.stderr.readline()
        if not line:
            sys.exit("gunicorn did not start:\n" + "".join(said))
        said.append(line)
        url = url or (re.search(r"Listening at: (\S+)", line) or [None, None])[1]
    threading.Thread(target=server.stderr.read, daemon=True).start()
    return server, url, config


def main():
    plain = "--plain" in sys.argv
    numbers = [arg for arg in sys.argv[1:] if arg.isdigit()]
    count, seconds = (numbers + ["1450000", "40"])[:2] if len(numbers) != 1 else (numbers[0], "40")
    server, url, config = start(plain, count)
    done, failed, stop, lock = [0], [], threading.Event(), threading.Lock()

    def ask(which):
        number = which
        while not stop.is_set():
            number += 4
            try:
                with urllib.request.urlopen(f"{url}/{number}", timeout=120) as answer:
                    answer.read()
            except Exception as error:
                with lock:
                    failed.append(repr(error))
            with lock:
                done[0] += 1

    clients = [threading.Thread(target=ask, args=[which]) for which in range(4)]
    started = time.monotonic()
    line = [f"{pss_mib(server.pid):.0f}"]
    try:
        for client in clients:
            client.start()
        for part in range(8):
            stop.wait(float(seconds) / 8)
            line.append(f"{pss_mib(server.pid):.0f}")
            if part == 3:
                server.send_signal(signal.SIGHUP)
        lasted = time.monotonic() - started
    finally:
        stop.set()
        for client in clients:
            client.join()
        server.terminate()
        server.wait()
        os.unlink(config)  # a reload reads it again
    print(f"gunicorn and Flask, {'plain' if plain else 'frozen'}: PSS in MiB, each {float(seconds) / 8:.0f} s:", ", ".join(line))
    print(f"  {done[0] / lasted:.0f} requests a second, {len(failed)} of {done[0]} failed, reloaded after {float(seconds) / 2:.0f} s")
    if failed:
        sys.exit("\n".join(failed[:5]))


if __name__ == "__main__":
    main()
