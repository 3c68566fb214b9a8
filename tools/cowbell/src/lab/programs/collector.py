"""usage: collector.py neither|disable|freeze|object|handle LISTS

A forked child over many small lists. neither, disable, freeze: it collects garbage as CPython does by itself (neither), never (disable),
or with what was there at the fork set aside (freeze: gc.disable, gc.freeze, then gc.enable in the child). object, handle: a worker of a
pool is sent the lists, or their place in a table that it inherited.
"""
import gc
import multiprocessing
import os
import sys

import lab

TABLE = {}


def size(what):
    data = TABLE[what] if isinstance(what, str) else what
    return len(data)


if __name__ == "__main__":
    way, lists = sys.argv[1], int(sys.argv[2])
    if way in ("disable", "freeze"):
        gc.disable()
    TABLE["lists"] = [[n] for n in range(lists)]
    if way in ("object", "handle"):
        with multiprocessing.get_context("fork").Pool(1) as pool:
            lab.tell(answer=str(pool.map(size, ["lists" if way == "handle" else TABLE["lists"]])[0]))
            pool.close()
            pool.join()
        sys.exit()
    if way == "freeze":
        gc.freeze()
    child = os.fork()
    if child == 0:
        if way == "freeze":
            gc.enable()
        if way != "disable":
            gc.collect()
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("the child failed")
    lab.tell(answer=str(len(TABLE["lists"])))
