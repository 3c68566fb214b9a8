"""Starts gunicorn with the recipe, asks each worker, and prints its figure.   usage: gunicorn_figures.py [--plain] [COUNT]"""

import os
import subprocess
import sys
import urllib.request

from work import show

if __name__ == "__main__":
    plain = "--plain" in sys.argv
    count = next((arg for arg in sys.argv[1:] if arg.isdigit()), "1000000")
    environment = dict(
        os.environ, RECIPE_PLAIN="1" if plain else "", RECIPE_COUNT=count, RECIPE_BIND="127.0.0.1:0", PYTHONUNBUFFERED="1"
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn_conf.py", "gunicorn_app:app"],
        env=environment, cwd=os.path.dirname(os.path.abspath(__file__)), stderr=subprocess.PIPE, text=True,
    )
    try:
        url, said = None, []
        for line in server.stderr:
            said.append(line)
            if "Listening at:" in line:
                url = line.split("Listening at: ")[1].split()[0]
            if sum("Booting worker" in line for line in said) == 2:
                break
        else:
            sys.exit("gunicorn did not start:\n" + "".join(said))
        workers = {}
        for _ in range(200):
            pid, mib = urllib.request.urlopen(url, timeout=60).read().split()
            workers[int(pid)] = max(float(mib), workers.get(int(pid), 0))
            if len(workers) == 2:
                break
        show("gunicorn, " + ("plain" if plain else "frozen"), workers)
    finally:
        server.terminate()
        server.communicate()
