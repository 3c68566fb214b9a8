"""A Flask application that answers from a large data set; gunicorn_load.py starts it."""

import os

from flask import Flask
from work import load

app = Flask(__name__)
data = load(int(os.environ.get("RECIPE_COUNT", "1450000")))  # 400 MiB


@app.get("/<int:number>")
def answer(number):
    # A request reads a part of the data, as a search does: after some hundred requests a worker has read all.
    first = number * 9973 % len(data)
    found = 0
    for at in range(first, min(first + 20_000, len(data))):
        found += len(data[f"key {at}"])
    return f"{os.getpid()} {found}"
