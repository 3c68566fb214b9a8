"""A Python contender of `cowbell-bench pool`: does one piece of work with one kind of pool, and prints what it took.

usage: python3 -c "$(cat pool.py)" ORDER

ORDER is JSON: peer, work, jobs, workers, bytes. The answer is a line of JSON: ns_per_job. The pool is made, and has
answered something of each worker's, before the clock starts. Workers are forked: Python's cheapest way, and the only
one in which they inherit data.
"""
import array
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor

BLOCKS = 64
PATTERN = 1 << 20
JOB_S = 100e-6

data = None
blocks = None
proxy = None


def empty(number):
    return number


def busy(number):
    # The thread's own time: a worker that has to wait for a processor has not done its work meanwhile.
    end = time.thread_time() + JOB_S
    while time.thread_time() < end:
        pass
    return number


def lookup(index):
    return data[index]


def lookup_at_manager(index):
    return proxy[index]


def block(number):
    # A copy, as a result that was computed would be: bytes(bytes) would be the same object.
    return bytes(memoryview(blocks[number % BLOCKS]))


def index(number, words):
    """The place of a job's word: the same in every contender."""
    return (number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) % words


def times(jobs, one):
    took = []
    for number in range(jobs):
        begun = time.perf_counter_ns()
        one(number)
        took.append(time.perf_counter_ns() - begun)
    return statistics.median(took)


def check(results, expected):
    if results != expected:
        raise SystemExit("a result is wrong")


def work_of(order):
    """The function, its arguments and what they must give."""
    global data, blocks, proxy
    work, jobs = order["work"], order["jobs"]
    if work == "empty":
        return empty, range(jobs), lambda results: check(results, list(range(jobs)))
    if work == "busy":
        return busy, range(jobs), lambda results: check(results, list(range(jobs)))
    if work == "lookup":
        words = order["bytes"] // 8
        if order["peer"] == "python_manager":
            words = min(words, order["manager_items"])
            manager = multiprocessing.get_context("fork").Manager()
            proxy = manager.list([number % PATTERN for number in range(words)])
            # Keeps the manager's process alive as long as this one.
            proxy.keep = manager
        else:
            data = array.array("Q", range(min(words, PATTERN))) * max(1, words // PATTERN)
        at = [index(number, words) for number in range(jobs)]
        function = lookup_at_manager if order["peer"] == "python_manager" else lookup
        return function, at, lambda results: check(results, [place % PATTERN for place in at])
    blocks = [bytes([number]) * order["bytes"] for number in range(BLOCKS)]

    def ends(results):
        for number, result in enumerate(results):
            assert result[0] == result[-1] == number % BLOCKS and len(result) == order["bytes"]

    return block, range(jobs), ends


def main(order):
    peer, jobs, workers = order["peer"], order["jobs"], order["workers"]
    context = multiprocessing.get_context("fork")
    if order["work"] == "round_trip":
        if peer == "python_pool":
            pool = context.Pool(workers)
            one = lambda number: pool.apply(empty, (number,))
        else:
            pool = ProcessPoolExecutor(workers, mp_context=context)
            one = lambda number: pool.submit(empty, number).result()
        times(max(1, jobs // 10), one)
        return times(jobs, one)
    function, arguments, verify = work_of(order)
    if peer.startswith("python_executor"):
        pool = ProcessPoolExecutor(workers, mp_context=context)
        # What Pool.map takes by default: four chunks a worker.
        chunk = 1 if peer == "python_executor_chunk1" else max(1, -(-jobs // (4 * workers)))
        run = lambda arguments: list(pool.map(function, arguments, chunksize=chunk))
    else:
        pool = context.Pool(workers)
        chunk = 1 if peer == "python_pool_chunk1" else None
        run = lambda arguments: pool.map(function, arguments, chunksize=chunk)
    run(arguments[: max(workers, jobs // 50)])
    begun = time.perf_counter_ns()
    results = run(arguments)
    took = time.perf_counter_ns() - begun
    verify(results)
    return took / jobs


if __name__ == "__main__":
    print(json.dumps({"ns_per_job": main(json.loads(sys.argv[1]))}))
