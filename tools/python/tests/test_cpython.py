"""CPython's own tests of what freezing touches have the same outcome in a child after a freeze as without it."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest
from kit import run

#: Those that take long only in the soak.
MODULES = ["test_gc", "test_weakref", "test_copy", "test_dict", "test_list"]
LONG = ["test_set", "test_pickle"]


@pytest.mark.skipif(
    importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_gc") is None,
    reason="this interpreter comes without its own tests",
)
@pytest.mark.parametrize("module", MODULES + (LONG if os.environ.get("COWBELL_SOAK") else []))
def test_its_own_tests_end_the_same(module):
    (plain, _), (frozen, said) = (
        json.loads(run("suite.py", module, how, timeout=900).splitlines()[-1]) for how in ("plain", "frozen")
    )
    assert len(plain) > 40, plain
    assert list(plain.values()).count("ok") > 30, plain
    different = {name: (plain.get(name), frozen.get(name)) for name in plain.keys() | frozen.keys() if plain.get(name) != frozen.get(name)}
    assert not different, f"{different}\n{said}"
