"""usage: causes.py sort|json [ITEMS]: what a child copies of a frozen list of str that it sorts, or makes JSON of, and what for."""

from __future__ import annotations

import json
import os
import sys
import time

import cowbell_fork


def main():
    action = sys.argv[1]
    data = [f"string number {n} of the list" for n in range(int(sys.argv[2]) if len(sys.argv) > 2 else 3_000_000)]
    frozen = cowbell_fork.freeze(data).seconds
    started = time.perf_counter()
    cowbell_fork.count_copies(explain=True)
    print(f"frozen in {frozen:.2f} s; recorded in {time.perf_counter() - started:.2f} s", flush=True)
    if os.fork() == 0:
        if action == "sort":
            data.sort(reverse=True)
        else:
            json.dumps(data)
        started = time.perf_counter()
        found = cowbell_fork.copied()
        took = time.perf_counter() - started
        print(found)
        print(f"told in {took * 1e3:.0f} ms", flush=True)
        os._exit(0)
    assert os.wait()[1] == 0


if __name__ == "__main__":
    main()
