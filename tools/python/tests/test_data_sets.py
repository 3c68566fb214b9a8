"""What children copy of the seven data sets: read as they are, after gc.freeze(), and after cowbell_fork.freeze()."""

from __future__ import annotations

import json
import os

import data_sets
import pytest
from kit import run

#: A tenth of the size in CI: the copies are 12 to 25 MiB then.
SHARE = "1" if os.environ.get("COWBELL_SOAK") else "0.1"

NAMES = [of.__name__ for of in data_sets.ALL]


@pytest.fixture(scope="module")
def measured():
    """MiB by data set, by what was done before the fork, by what the child did."""
    results = {
        name: {how: json.loads(run("data_sets.py", name, how, SHARE)) for how in ("plain", "gc", "frozen")}
        for name in NAMES
    }
    print("\nMiB newly Private_Dirty in a child, at", SHARE, "of the full size")
    for name, by_how in results.items():
        for how, by_action in by_how.items():
            print(f"  {name:10} {how:7}", *(f"{action} {mib:7.2f}  " for action, mib in by_action.items()))
    return results


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("action", sorted(data_sets.ACTIONS))
def test_a_child_copies_nothing_of_frozen_data(measured, name, action):
    assert measured[name]["frozen"][action] <= 0.3


@pytest.mark.parametrize("name", NAMES)
def test_without_it_the_child_copies_what_it_reads(measured, name):
    """The comparison would be worth nothing if these children copied nothing, either."""
    for how in ("plain", "gc"):
        assert measured[name][how]["read"] > 80 * float(SHARE), how
