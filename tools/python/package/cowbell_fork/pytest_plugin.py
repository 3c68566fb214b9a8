"""pytest: ``@pytest.mark.limit_copies("2 MB")`` runs a test's body in a forked child, and fails if it copied more.

With ``lines=True`` the failure names the lines, as :class:`cowbell_fork.watch` does.

Fixtures are set up before the fork, as a server loads its data before it forks workers, and torn down after it in the
parent. What the body raises, skips, prints, logs and warns of is the test's, as if it had run in the parent; what it
changes in memory is not seen there. A fixture that the body itself asks for (``request.getfixturevalue``) ends with the child.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import select
import signal
import sys
import unittest
import warnings
from typing import Any, Dict, Generator, List, Optional

import pytest

from . import _count
from ._count import Copied, CopiesExceeded
from ._native import Unsupported

#: The number of the process that runs a test's body; 0 in pytest's own.
_body_of = 0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "limit_copies(max_bytes, lines=False): run the test in a forked child, and fail if it copies more memory than this"
        " (bytes, or a text like '2 MB'); needs Linux 6.7. With lines=True the failure names the lines that copied",
    )


def _limit(item: pytest.Item) -> Optional[int]:
    """The limit that a test is marked with, in bytes."""
    marker = item.get_closest_marker("limit_copies")
    if marker is None:
        return None
    values = list(marker.args) + [marker.kwargs[name] for name in marker.kwargs if name == "max_bytes"]
    others = set(marker.kwargs) - {"max_bytes", "lines"}
    if len(values) != 1 or others:
        pytest.fail("limit_copies takes one argument, as in @pytest.mark.limit_copies('2 MB')", pytrace=False)
    try:
        return _count.parse_size(values[0])
    except ValueError as error:
        pytest.fail(f"limit_copies: {error}", pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if _limit(item) is None:
        return
    owner = getattr(item, "cls", None)
    if not isinstance(item, pytest.Function) or isinstance(owner, type) and issubclass(owner, unittest.TestCase):
        pytest.fail(
            "limit_copies is for test functions and for methods of plain classes, and this is a unittest.TestCase"
            " or an item of another plugin: nothing would be counted",
            pytrace=False,
        )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Optional[object]:
    limit = _limit(pyfuncitem)
    if limit is None or _body_of == os.getpid():
        return None
    answer = _in_child(pyfuncitem)
    found = answer.get("copied")
    if isinstance(found, Copied):
        pyfuncitem.user_properties.append(("copied_bytes", found.bytes))
    if answer["failed"]:
        error = _revived(answer)
        setattr(pyfuncitem, "_cowbell_failure", (error, answer["longrepr"]))
        raise error
    if found is not None and found.bytes > limit:
        exceeded = CopiesExceeded(found, limit)
        text = f"limit_copies: {exceeded}\n{_lines_text(answer)}{_ADVICE}"
        setattr(pyfuncitem, "_cowbell_failure", (exceeded, text))
        raise exceeded
    return True


_ADVICE = (
    "Reading Python objects counts references inside them, and so copies them: cowbell_fork.freeze(data) before the fork\n"
    "keeps them shared, on CPython 3.12 and later."
)


def _lines_text(answer: Dict[str, Any]) -> str:
    """The lines that copied the most, where they were asked for."""
    if not answer["asked"]:
        return "limit_copies(..., lines=True) names the lines, and takes a quarter of a second more.\n"
    if answer["unknown"] is not None:
        return f"by which lines is not known: {answer['unknown']}\n"
    return "\n".join(["by lines:", *(f"  {line}" for line in answer["lines"][:10]), ""])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    error, longrepr = getattr(item, "_cowbell_failure", (None, None))
    if call.when != "call" or call.excinfo is None or call.excinfo.value is not error:
        return
    report = outcome.get_result()
    # Skipped: where, and why. The place is the test, and not the line here that raises.
    if report.outcome == "failed" and longrepr is not None:
        report.longrepr = longrepr


def _in_child(item: pytest.Function) -> Dict[str, Any]:
    """Runs the test's body in a child, and returns what it said."""
    native = _enabled()
    sinks = _Sinks()
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    finally:
        if not _count._asked_by:
            native.cowbell_count_disable()
    if pid == 0:
        _be_the_child(item, sinks, reader, writer)
    os.close(writer)
    status: Optional[int] = None
    try:
        data = _read(reader, pid)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(reader)
        if status is None:
            # Interrupted, or out of time: whoever raised that here must not leave the body running.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if data is None:
        how = f"was killed by {signal.Signals(status).name}" if os.WIFSIGNALED(status) else (
            f"ended with status {os.WEXITSTATUS(status)}"
        )
        pytest.fail(f"the child that ran this test {how} before the test ended", pytrace=False)
    answer: Dict[str, Any] = pickle.loads(data)
    sinks.put(answer["said"])
    return answer


def _enabled() -> Any:
    """The native part, which counts in the child that is forked next."""
    failure = _count.Failure()
    try:
        native = _count.library()
        if native.cowbell_count_enable(ctypes.byref(failure)):
            raise _count._refusal(failure)
    except (Unsupported, _count.NotCounted) as error:
        pytest.fail(f"limit_copies: nothing can be counted here: {error}", pytrace=False)
    return native


def _read(reader: int, pid: int) -> Optional[bytes]:
    """The child's answer, after its length; ``None`` where the child died without one.

    Processes that the body started may hold the other end of the pipe for longer.
    """
    data = b""
    died = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    if died is not None:
        poll.register(died, select.POLLIN)
    try:
        while True:
            # Without pidfd (before 3.9) the child is asked for.
            ready = [fd for fd, _ in poll.poll(None if died is not None else 50)]
            if reader in ready:
                part = os.read(reader, 1 << 16)
                data += part
                if len(data) >= 8 and len(data) - 8 >= int.from_bytes(data[:8], "little"):
                    return data[8:]
                if not part:
                    return None
            elif died in ready or died is None and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return None
    finally:
        if died is not None:
            os.close(died)


def _be_the_child(item: pytest.Function, sinks: _Sinks, reader: int, writer: int) -> None:
    global _body_of
    status = 1
    try:
        native = _count.library()
        native.cowbell_count_die_with_parent()
        native.cowbell_count_disable()
        _body_of = os.getpid()
        os.close(reader)
        answer = _run_body(item)
        sys.stdout.flush()
        sys.stderr.flush()
        answer["said"] = sinks.taken()
        data = pickle.dumps(answer)
        message = memoryview(len(data).to_bytes(8, "little") + data)
        while message:
            message = message[os.write(writer, message) :]
        status = 0
    finally:
        os._exit(status)


def _run_body(item: pytest.Function) -> Dict[str, Any]:
    # The harness' own frames are not the test's: of a block that raises, too, what it copied is known.
    marker = item.get_closest_marker("limit_copies")
    asked = marker is not None and bool(marker.kwargs.get("lines"))
    block = _count.watch(lines=asked, _of_this_child=True)
    try:
        with block:
            item.ihook.pytest_pyfunc_call(pyfuncitem=item)
    except BaseException as error:
        excinfo: pytest.ExceptionInfo[BaseException] = pytest.ExceptionInfo.from_current()
        try:
            longrepr: Any = item.repr_failure(excinfo)
            pickle.dumps(longrepr)
        except Exception:
            longrepr = str(excinfo.getrepr(style="short"))
        return {"failed": True, "error": _packed(error), "longrepr": longrepr, "copied": getattr(block, "copied", None)}
    return {
        "failed": False,
        "copied": block.copied,
        "asked": asked,
        "unknown": block.lines_unknown,
        "lines": [str(line) for line in block.lines],
    }


def _packed(error: BaseException) -> Dict[str, Any]:
    """An exception, as far as it can be sent."""
    whole = None
    try:
        whole = pickle.dumps(error)
        if type(pickle.loads(whole)) is not type(error):
            whole = None
    except Exception:
        whole = None
    # Classes that the parent knows as well; one that the body made is stood in for.
    known = [(of.__module__, of.__qualname__) for of in type(error).__mro__]
    outcome = next((name for name, of in _OUTCOMES.items() if isinstance(error, of)), None)
    values = {name: getattr(error, name) for name in ("msg", "pytrace", "returncode") if hasattr(error, name)}
    return {"whole": whole, "known": known, "text": str(error), "outcome": outcome, "values": values}


_OUTCOMES: Dict[str, type] = {
    "skip": pytest.skip.Exception,
    "xfail": pytest.xfail.Exception,
    "exit": pytest.exit.Exception,
    "fail": pytest.fail.Exception,
}


def _revived(answer: Dict[str, Any]) -> BaseException:
    """The exception that the body raised, for whoever looks at its type: xfail, other plugins."""
    packed = answer["error"]
    outcome, values = packed["outcome"], packed["values"]
    msg = values.get("msg")
    if outcome == "skip":
        return pytest.skip.Exception(msg, _use_item_location=True)
    if outcome == "xfail":
        return pytest.xfail.Exception(msg)
    if outcome == "exit":
        return pytest.exit.Exception(msg or "", values.get("returncode"))
    if outcome == "fail":
        return pytest.fail.Exception(msg, pytrace=values.get("pytrace", True))
    if packed["whole"] is not None:
        error: BaseException = pickle.loads(packed["whole"])
        return error
    for at, (module, qualname) in enumerate(packed["known"]):
        found: Any = sys.modules.get(module)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            # An exception's own constructor may want other arguments than its text.
            first = packed["known"][0][1].rsplit(".", 1)[-1]
            of: Any = found if at == 0 else type(first, (found,), {"__str__": lambda self: self.args[0]})
            revived: Any = of.__new__(of, packed["text"])
            assert isinstance(revived, BaseException)
            return revived
    return RuntimeError(packed["text"])


class _Sinks:
    """Where output, log records and warnings are kept in memory: what the child adds to them is added in the parent."""

    def __init__(self) -> None:
        # With capture by file descriptor the two write into one file, and there is nothing to hand over.
        self._streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "getvalue")]
        self._written = [len(stream.getvalue()) for stream in self._streams]
        root = logging.getLogger()
        self._handlers = [h for h in root.handlers if type(h).__name__ == "LogCaptureHandler" and hasattr(h, "records")]
        self._logged = [len(h.records) for h in self._handlers]
        # What catch_warnings(record=True) records to: pytest's own, or that of the fixture recwarn.
        sink = getattr(getattr(warnings, "_showwarnmsg_impl", None), "__self__", None)
        self._warnings: List[Any] = sink if isinstance(sink, list) else []
        self._warned = len(self._warnings)

    def taken(self) -> Dict[str, Any]:
        """What was added since."""
        return {
            "text": [stream.getvalue()[start:] for stream, start in zip(self._streams, self._written)],
            "logs": [[_plain(r) for r in h.records[start:]] for h, start in zip(self._handlers, self._logged)],
            "warnings": [_packed_warning(warning) for warning in self._warnings[self._warned :]],
        }

    def put(self, said: Dict[str, Any]) -> None:
        """Adds it."""
        for stream, text in zip(self._streams, said["text"]):
            stream.write(text)
        for handler, records in zip(self._handlers, said["logs"]):
            for record in records:
                handler.emit(logging.makeLogRecord(record))
        for warning in said["warnings"]:
            message = pickle.loads(warning.pop("message"))
            self._warnings.append(warnings.WarningMessage(message, type(message), **warning))


def _plain(record: logging.LogRecord) -> Dict[str, Any]:
    """A record that can be sent: its text made, and what is no plain value left out."""
    values = dict(vars(record), msg=record.getMessage(), args=None)
    if record.exc_info and not record.exc_text:
        values["exc_text"] = logging.Formatter().formatException(record.exc_info)
    values["exc_info"] = None
    kept = {}
    for name, value in values.items():
        try:
            pickle.dumps(value)
            kept[name] = value
        except Exception:
            kept[name] = repr(value)
    return kept


def _packed_warning(warning: Any) -> Dict[str, Any]:
    try:
        message = pickle.dumps(warning.message)
        pickle.loads(message)
    except Exception:
        message = pickle.dumps(UserWarning(f"{type(warning.message).__name__}: {warning.message}"))
    return {"message": message, "filename": warning.filename, "lineno": warning.lineno}
