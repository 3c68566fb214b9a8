"""The recipes of docs/PYTHON.md, as they stand there, at a tenth of their size."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from kit import HERE

RECIPES = os.path.join(HERE, "..", "recipes")


def figures(recipe, *arguments):
    """MiB that each worker copied."""
    path = os.pathsep.join([os.environ["COWBELL_PACKAGE"], os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, os.path.join(RECIPES, recipe), *arguments, "100000"],
        capture_output=True, text=True, timeout=120, env=dict(os.environ, PYTHONPATH=path), cwd=RECIPES,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [float(mib) for mib in re.findall(r"([\d.]+) MiB", done.stdout)]
    assert len(found) == 2, f"not two workers: {done.stdout}{done.stderr}"
    return found


@pytest.mark.parametrize(
    "recipe",
    [
        ("pool.py",),
        ("executor.py", "fork"),
        ("executor.py", "forkserver"),
        ("gunicorn_figures.py",),
        ("joblib_workers.py",),
        ("celery_figures.py",),
        ("uvicorn_workers.py",),
        ("granian_workers.py",),
    ],
    ids=lambda recipe: " ".join(recipe),
)
def test_workers_copy_nothing_where_the_recipe_is_followed_and_all_where_not(recipe):
    if recipe == ("granian_workers.py",):
        pytest.importorskip("granian", reason="granian is not installed for this interpreter")
    assert max(figures(*recipe)) <= 1.0
    assert min(figures(*recipe, "--plain")) > 20


def test_a_server_under_load_grows_only_without_it_and_reloads_without_a_failure():
    def grown(*arguments):
        """MiB by which the server's processes grew, halfway and at the end; it fails by itself where a request did."""
        path = os.pathsep.join([os.environ["COWBELL_PACKAGE"], os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, os.path.join(RECIPES, "gunicorn_load.py"), *arguments, "100000", "6"],
            capture_output=True, text=True, timeout=120, env=dict(os.environ, PYTHONPATH=path), cwd=RECIPES,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r" 0 of \d+ failed", done.stdout), done.stdout
        pss = [int(mib) for mib in re.findall(r"\d+", done.stdout.split("each 1 s:")[1].splitlines()[0])]
        assert len(pss) == 9 and min(pss) > 20, done.stdout
        return pss[4] - pss[0], pss[8] - pss[0]

    frozen, plain = grown(), grown("--plain")
    # Eight workers also have some memory of their own each, and Flask's.
    assert max(frozen) < min(plain) - 40, (frozen, plain)
