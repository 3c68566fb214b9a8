"""What the recipes share: a data set, a job that reads it, and a figure. Run one of the recipes instead."""

from __future__ import annotations

import os
import time


def load(count: int) -> dict[str, list[object]]:
    return {f"key {n}": [n * 3, f"value {n}", n * 0.5] for n in range(count)}


def read(data: dict[str, list[object]]) -> float:
    """Reads everything, and returns the MiB that this worker copied or allocated on the way."""
    before = private_dirty_mib()
    for values in data.values():
        for value in values:
            value is None
    time.sleep(0.05)  # so that the other worker gets a job as well
    return private_dirty_mib() - before


def private_dirty_mib() -> float:
    file = os.open("/proc/self/smaps_rollup", os.O_RDONLY)
    try:
        lines = os.read(file, 4000).decode().splitlines()
    finally:
        os.close(file)
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Private_Dirty:"))


def show(what: str, workers: dict[int, float]) -> None:
    print(f"{what}:", ", ".join(f"{mib:.1f} MiB" for mib in workers.values()), f"in {len(workers)} workers")
