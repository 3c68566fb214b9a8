"""Workers that read one list of three million str, kept in the ways that people know.

usage: peers.py [--share SHARE] [--rounds N] [--spread] [--chart FILE] [WAY ...]

Prints a table of medians; docs/PYTHON.md has it, and docs/peers.svg is its chart. tools/python/peers installs what it
needs and runs it. Each way of each round is a process of its own with two workers, which read at the same time:
everything in order, which is when a worker copies, then a million items at random.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from array import array
from typing import Any, Callable, NamedTuple, Optional

import data_sets
import peers_chart
from kit import HERE, private_dirty

WORKERS = 2
#: Reads at random in each worker.
AT_RANDOM = 1_000_000
#: Reads of each kind where every read is a message to another process.
MESSAGES = 20_000


def gc_freeze(data: Any) -> Any:
    import gc

    gc.collect()
    gc.freeze()
    return data


def freeze(data: Any) -> Any:
    import cowbell_fork

    cowbell_fork.freeze(data)
    return data


def cinderx(data: Any) -> Any:
    import cinderx

    cinderx.immortalize_heap()
    return data


def numpy(data: Any) -> Any:
    import numpy

    return numpy.array(data, dtype=numpy.dtypes.StringDType())


def arrow(data: Any) -> Any:
    import pyarrow

    return pyarrow.array(data)


def arrow_reader(column: Any) -> Callable[[int], str]:
    return lambda at: column[at].as_py()


def joined(data: Any) -> Any:
    """The text of all, and where each begins and the last one ends."""
    parts = [text.encode() for text in data]
    ends, end = array("Q", [0]), 0
    for part in parts:
        end += len(part)
        ends.append(end)
    return b"".join(parts), ends


def joined_reader(kept: Any) -> Callable[[int], str]:
    text, ends = kept
    return lambda at: str(text[ends[at] : ends[at + 1]], "utf-8")


def shared_text(data: Any) -> Any:
    from multiprocessing.shared_memory import SharedMemory

    text, ends = joined(data)
    segments = []
    for part in (text, ends.tobytes()):
        segment = SharedMemory(create=True, size=len(part))
        segment.buf[: len(part)] = part
        segments.append(segment)
    return segments


def shared_text_reader(segments: Any) -> Callable[[int], str]:
    text, ends = segments[0].buf, segments[1].buf[: segments[1].size // 8 * 8].cast("Q")
    return lambda at: str(text[ends[at] : ends[at + 1]], "utf-8")


def shareable_list(data: Any) -> Any:
    from multiprocessing.shared_memory import ShareableList

    return ShareableList(data)


def manager(data: Any) -> Any:
    server = multiprocessing.Manager()
    # Whoever holds the list alone holds no reference to the server, which would end.
    return server, server.list(data)


class Way(NamedTuple):
    #: As the table calls it.
    name: str
    #: Makes of the list what is kept in its place, before the fork.
    keep: Callable[[Any], Any]
    #: In a worker, makes of what is kept a function from an item's number to its str.
    reader: Callable[[Any], Callable[[int], str]] = lambda kept: kept.__getitem__
    #: The module without which it is left out.
    needs: Optional[str] = None
    #: True where every read is a message.
    is_message: bool = False
    #: Takes back what outlives the process.
    end: Callable[[Any], Any] = lambda kept: None


def end_segments(segments: Any) -> None:
    for segment in segments:
        segment.close()
        segment.unlink()


WAYS = {
    "plain": Way("list, plain", lambda data: data),
    "gc": Way("list, `gc.freeze()`", gc_freeze),
    "freeze": Way("list, `cowbell_fork.freeze`", freeze, needs="cowbell_fork"),
    "cinderx": Way("list, cinderx `immortalize_heap`", cinderx, needs="cinderx"),
    "numpy": Way("numpy, `StringDType`", numpy, needs="numpy"),
    "arrow": Way("Arrow, `pyarrow.array`", arrow, arrow_reader, needs="pyarrow"),
    "bytes": Way("`bytes` and offsets", joined, joined_reader),
    "shared": Way("the same in `shared_memory`", shared_text, shared_text_reader, end=end_segments),
    "shareable": Way("`ShareableList`", shareable_list, end=lambda kept: end_segments([kept.shm])),
    "manager": Way(
        "`Manager().list`", manager, lambda kept: kept[1].__getitem__, is_message=True, end=lambda kept: kept[0].shutdown()
    ),
}


def read(get: Callable[[int], str], order: Any) -> float:
    """Reads items a second, each once."""
    started = time.monotonic()
    length = 0
    for at in order:
        length += len(get(at))
    assert length > 20 * len(order), "not the strings that were kept"
    return len(order) / (time.monotonic() - started)


def work(way: Way, kept: Any, orders: Any, started: float, links: Any) -> None:
    """A worker: one read at once, everything when it is told to, and the end when it is told that."""
    before = private_dirty()
    get = way.reader(kept)
    assert get(0).startswith("string number 0")
    links.send(time.monotonic() - started)
    links.recv()
    rates = [read(get, order) for order in orders]
    links.send([*rates, (private_dirty() - before) / 1024])
    links.recv()


def pss_mib(pid: int) -> float:
    """Proportional memory of a process and all below it, MiB."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        mine = next(int(line.split()[1]) / 1024 for line in file if line.startswith("Pss:"))
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return mine + sum(pss_mib(int(child)) for child in file.read().split())


def one(way: Way, share: float) -> dict[str, float]:
    """Measures one way in this process."""
    if way.needs:
        importlib.import_module(way.needs)
    data = data_sets.strings(share)
    count = len(data)
    started = time.monotonic()
    kept = way.keep(data)
    ready_s = time.monotonic() - started
    del data
    in_order, at_random = range(count), min(AT_RANDOM, count)
    if way.is_message:
        at_random = min(MESSAGES, count // 10)
        in_order = range(at_random)
    orders = in_order, array("I", random.Random(1).choices(range(count), k=at_random))

    context = multiprocessing.get_context("fork")
    workers = []
    for _ in range(WORKERS):
        here, there = context.Pipe()
        process = context.Process(target=work, args=(way, kept, orders, time.monotonic(), there))
        process.start()
        workers.append((process, here))
        there.close()
    start_s = statistics.mean(link.recv() for _, link in workers)
    for _, link in workers:
        link.send("read")
    figures = [link.recv() for _, link in workers]
    all_mib = pss_mib(os.getpid())
    for process, link in workers:
        link.send("end")
        process.join()
        assert process.exitcode == 0, f"a worker ended with {process.exitcode}"
    way.end(kept)
    in_order_rate, at_random_rate, own_mib = (statistics.mean(column) for column in zip(*figures))
    return {
        "ready_s": ready_s,
        "start_ms": start_s * 1e3,
        "own_mib": own_mib,
        "all_mib": all_mib,
        "in_order": in_order_rate,
        "at_random": at_random_rate,
    }


def rate(value: float) -> str:
    """Reads a second, with two digits that say something."""
    return f"{value / 1e6:.1f} M" if value >= 1e5 else f"{value / 1e6:.3f} M"


def spread(results: list[dict[str, float]]) -> str:
    """The smallest and the largest of the rounds: of what is a worker's own, and of reads a second in order."""
    own, rates = ([row[key] for row in results] for key in ("own_mib", "in_order"))
    return f"{min(own):.1f} to {max(own):.1f} MiB; {rate(min(rates))} to {rate(max(rates))}"


def table(rows: list[tuple[str, dict[str, float]]]) -> str:
    lines = [
        "| kept as | made ready | a worker starts in | of its own, MiB | all processes, MiB | reads a second, in order | at random |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows:
        own = f"{row['own_mib']:.1f}" if row["own_mib"] < 10 else f"{row['own_mib']:.0f}"
        ready = f"{row['ready_s']:.1f} s" if row["ready_s"] >= 0.05 else "0 s"
        cells = [name, ready, f"{row['start_ms']:.0f} ms", own, f"{row['all_mib']:.0f}", rate(row["in_order"]), rate(row["at_random"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    ask = argparse.ArgumentParser(usage=__doc__)
    ask.add_argument("--share", default="1", help="part of the three million")
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--spread", action="store_true", help="say also how far the rounds lie apart")
    ask.add_argument("--chart")
    ask.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    ask.add_argument("ways", nargs="*", choices=[*WAYS, []])
    said = ask.parse_args()
    if said.one:
        print(json.dumps(one(WAYS[said.ways[0]], float(said.share))))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(said.rounds):
        for name in said.ways or WAYS:
            needs = WAYS[name].needs
            if needs and importlib.util.find_spec(needs) is None:
                if name not in found:
                    print(f"left out: {WAYS[name].name}: no module {needs} here", file=sys.stderr)
                found.setdefault(name, [])
                continue
            command = [sys.executable, os.path.join(HERE, "peers.py"), "--one", "--share", said.share, name]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found.setdefault(name, []).append(json.loads(done.stdout))
    rows = [
        (WAYS[name].name, {key: statistics.median(row[key] for row in results) for key in results[0]})
        for name, results in found.items()
        if results
    ]
    print(table(rows))
    if said.spread:
        print("\nSmallest and largest of the rounds, of a worker's own memory and of its reads a second in order:\n")
        print("\n".join(f"- {WAYS[name].name}: {spread(results)}" for name, results in found.items() if results))
    if said.chart:
        with open(said.chart, "w") as file:
            file.write(peers_chart.svg(rows))


if __name__ == "__main__":
    main()
