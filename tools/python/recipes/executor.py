"""ProcessPoolExecutor with fork or forkserver.   usage: python3 executor.py fork|forkserver [--plain] [COUNT]"""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from work import read, show


def job(_):
    import executor_data  # preloaded: the worker inherits it

    return os.getpid(), read(executor_data.data)


if __name__ == "__main__":
    how, plain = sys.argv[1], "--plain" in sys.argv
    os.environ["RECIPE_COUNT"] = next((arg for arg in sys.argv[2:] if arg.isdigit()), "1000000")
    os.environ["RECIPE_PLAIN"] = "1" if plain else ""
    context = multiprocessing.get_context(how)
    if how == "forkserver":
        # The server, from which the workers are forked, loads and freezes the data: this process need not.
        context.set_forkserver_preload(["executor_data"])
    else:
        import executor_data  # noqa: F401
    workers = {}
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for pid, mib in pool.map(job, range(4)):
            workers[pid] = max(mib, workers.get(pid, 0))
    show(f"ProcessPoolExecutor, {how}, " + ("plain" if plain else "frozen"), workers)
