"""Starts a Celery worker with the recipe, sends it jobs, and prints its figures.   usage: celery_figures.py [--plain] [COUNT]"""

import os
import subprocess
import sys
import tempfile

from work import show

if __name__ == "__main__":
    plain = "--plain" in sys.argv
    here = os.path.dirname(os.path.abspath(__file__))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("queue", "control", "results"):
            os.mkdir(f"{folder}/{name}")
        os.environ.update(
            RECIPE_PLAIN="1" if plain else "",
            RECIPE_COUNT=next((arg for arg in sys.argv[1:] if arg.isdigit()), "1000000"),
            RECIPE_FOLDER=folder,
        )
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "--concurrency=2", "--without-gossip",
             "--without-mingle", "--without-heartbeat", "--loglevel=warning"],
            cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        try:
            # Only to send: this process need not hold the data.
            os.environ["RECIPE_COUNT"] = "1"
            from celery_app import job

            workers = {}
            for result in [job.delay() for _ in range(8)]:
                pid, mib = result.get(timeout=120, interval=0.05)
                workers[pid] = max(mib, workers.get(pid, 0))
            show("Celery, prefork, " + ("plain" if plain else "frozen"), workers)
        finally:
            worker.terminate()
            worker.communicate(timeout=60)
