"""usage: suite.py MODULE plain|frozen: runs one of CPython's own test modules in a forked child, and prints each test's outcome.

`frozen`: after everything that the module and its interpreter hold, in lists, dicts, tuples, sets and instances, was frozen.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import sys
import unittest

from kit import in_child


def main():
    name, how = sys.argv[1:]
    module = importlib.import_module(f"test.{name}")
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    if how == "frozen":
        import cowbell_fork

        report = cowbell_fork.freeze(vars(module), suite, sys.modules["test.support"].__dict__)
        assert report.objects > 100, report

    def child():
        gc.collect()
        class Outcomes(unittest.TextTestResult):
            found = {}
            def startTest(self, test):
                super().startTest(test)
                self.found[test.id()] = "ok"
            def addError(self, test, error):
                super().addError(test, error)
                self.found[test.id()] = "error"
            def addFailure(self, test, error):
                super().addFailure(test, error)
                self.found[test.id()] = "failure"
            def addSkip(self, test, reason):
                super().addSkip(test, reason)
                self.found[test.id()] = "skip"
        said = io.StringIO()
        result = unittest.TextTestRunner(stream=said, resultclass=Outcomes).run(suite)
        return [result.found, "\n".join(text for _, text in result.errors + result.failures)]

    print(json.dumps(in_child(child)))


if __name__ == "__main__":
    main()
