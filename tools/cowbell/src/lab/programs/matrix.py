"""usage: matrix.py read|write ROWS WORKERS

Processes forked over a matrix of ROWS x ROWS numbers of 8 bytes, each of which reads all of it, or writes its own part. Tells by how
much free memory fell, from right before the forks until all were done and still there.
"""
import multiprocessing
import os
import sys

import numpy

import lab


def work(part):
    if way == "write":
        MATRIX[part::workers] += 1
    else:
        assert MATRIX.sum() == rows * rows
    meeting.work_is_done()


if __name__ == "__main__":
    way, rows, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    MATRIX = numpy.ones((rows, rows))
    context = multiprocessing.get_context("fork")
    meeting = lab.Meeting(context, workers)
    before = lab.available()
    processes = [context.Process(target=work, args=(part,)) for part in range(workers)]
    for process in processes:
        process.start()
    meeting.done.wait(lab.PATIENCE)
    after, together = lab.available(), lab.together(os.getpid())
    meeting.weighed.wait(lab.PATIENCE)
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a worker failed")
    lab.tell(together_bytes=together, free_fell_bytes=before - after)
