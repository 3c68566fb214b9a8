"""A Flask application that holds data, and reads all of it for each request. Loaded before the workers are forked if gunicorn is told
so, and by each worker otherwise."""
import mmap
import os
import sys

import flask

import lab


def load(kind, numbers):
    if kind == "list":
        return [n * 1000 for n in range(numbers)]
    if kind == "freeze":
        data = [n * 1000 for n in range(numbers)]
        lab.freeze(data)
        return data
    import numpy

    data = numpy.arange(numbers, dtype=numpy.int64) * 1000
    if kind == "numpy":
        return data
    if kind == "joblib":
        import joblib

        joblib.dump(data, "array")
        return joblib.load("array", mmap_mode="r")
    with open("bytes", "wb") as file:
        file.write(data.tobytes())
    with open("bytes", "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).cast("q")


KIND, NUMBERS, READS = os.environ["LAB_KIND"], int(os.environ["LAB_NUMBERS"]), os.environ["LAB_READS"] == "reads"
DATA = load(KIND, NUMBERS)
app = flask.Flask("site")


@app.get("/")
def read():
    total = 0
    if READS:
        total = int(DATA.sum()) if hasattr(DATA, "sum") else sum(DATA)
    return f"{os.getpid()} {total}"
