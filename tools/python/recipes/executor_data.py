"""The module with the data, which a forkserver preloads."""

import os

import cowbell_fork
from work import load

data = load(int(os.environ["RECIPE_COUNT"]))
if not os.environ["RECIPE_PLAIN"]:
    cowbell_fork.freeze(data)
