"""The cowbell tool, which watches this process for the length of a block, and tells which lines copied."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Optional, Tuple

if TYPE_CHECKING:
    import socket

# The modules that start programs are imported where lines are asked for: who only freezes has less memory to share without them.

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
#: ``PR_SET_PTRACER``: who may look at this process, where the Yama module restricts that.
_PR_SET_PTRACER = 0x59616D61


@dataclass(frozen=True)
class Line:
    """A line of code, and about how many pages were copied by it."""

    file: str
    line: int
    function: str
    #: The text of the line; ``""`` where the file could not be read.
    source: str
    #: Pages copied, estimated from the stacks of some of them.
    pages: int
    #: It is off by no more than so many pages, in 95 of 100 cases; ``None`` where that cannot be told.
    error: Optional[float]
    #: What was written: ``"reference_count"`` where only counts of references were; ``""`` where it is not known.
    cause: str

    def __str__(self) -> str:
        error = "" if self.error is None else f" ±{self.error:,.0f}"
        cause = f" [{self.cause.replace('_', ' ')}]" if self.cause else ""
        return f"{self.pages:,}{error} pages  {self.file}:{self.line} in {self.function}: {self.source}{cause}"


def _tool() -> Optional[str]:
    """The command that the wheel has installed beside the package, or one on the path."""
    try:
        from importlib.metadata import PackageNotFoundError, distribution

        for file in distribution("cowbell-fork").files or ():
            if file.name == "cowbell":
                found = os.path.realpath(str(file.locate()))
                if os.access(found, os.X_OK):
                    return found
    except PackageNotFoundError:
        pass
    from shutil import which

    return which("cowbell")


def _allow(pid: int) -> None:
    """Lets a process look at this one; 0: nobody."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            is_restricted = file.read().strip() == "1"
    except OSError:
        is_restricted = False
    if is_restricted:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


class Watch:
    """The tool at work, from the moment when it watches this process to the block's end."""

    def __init__(self) -> None:
        #: Why there will be no lines; one sentence.
        self.unknown: Optional[str] = None
        self._pid = os.getpid()
        self._socket: Optional[socket.socket] = None
        self._report: Optional[IO[bytes]] = None
        self._errors: Optional[IO[bytes]] = None
        tool = _tool()
        if tool is None:
            self.unknown = (
                "the command cowbell is neither beside this package nor on PATH: install the wheel of cowbell-fork, which has it"
            )
            return
        try:
            self._start(tool)
        except BaseException as error:
            self._close()
            if not isinstance(error, OSError):
                raise
            self.unknown = f"{tool} cannot be started: {error}"

    def _start(self, tool: str) -> None:
        import socket
        import subprocess
        import tempfile

        self._socket, theirs = socket.socketpair()
        # Files and no pipes: processes that were forked meanwhile would keep a pipe open that nobody reads.
        self._report, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        try:
            # COWBELL_ variables are for the runs that people start.
            environment = {name: value for name, value in os.environ.items() if not name.startswith("COWBELL_")}
            started = subprocess.Popen(
                [tool, "attach", "--control", str(theirs.fileno()), "--mode", "faults"]
                + ["--max-children", "1", "--json", "-o", "-", str(self._pid)],
                stdin=subprocess.DEVNULL,
                stdout=self._report,
                stderr=self._errors,
                pass_fds=(theirs.fileno(),),
                env=environment,
                cwd="/",
            )
        finally:
            theirs.close()
        # It starts itself anew as nobody's child, and ends.
        started.wait()
        words = self._line()
        if words.isdigit():
            _allow(int(words))
            self._socket.sendall(b"go\n")
            words = self._line()
        if words != "attached":
            self.unknown = self._why()
            _allow(0)
            self._close()

    def _line(self) -> str:
        """A line that the tool says; ``""`` where it has ended."""
        assert self._socket is not None
        said = b""
        try:
            while not said.endswith(b"\n"):
                part = self._socket.recv(1)
                if not part:
                    return ""
                said += part
        except ConnectionError:
            return ""
        return said.decode(errors="replace").strip()

    def _why(self) -> str:
        """What the tool said for people, instead of beginning."""
        report = self._ended()
        for gap in report["gaps"] if report else ():
            if gap["what"] == "not_armed" and gap["details"]:
                return f"cowbell cannot watch this process: {gap['details'][0]}"
        return self._last_words() or "cowbell ended before it watched this process: `cowbell doctor` says what it can do here"

    def _ended(self) -> Any:
        """Has the tool let go; its report, or ``None`` where it wrote none."""
        import json
        import socket

        assert self._socket is not None and self._report is not None
        try:
            # Not only closed: processes that were forked meanwhile may have it, too.
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        # The socket's other end is closed when the tool has ended.
        while self._line():
            pass
        self._report.seek(0)
        try:
            return json.loads(self._report.read())
        except ValueError:
            return None

    def _last_words(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        return (self._errors.read().decode(errors="replace").strip().splitlines() or [""])[-1]

    def end(self) -> Tuple[Line, ...]:
        """Ends the watch, and returns the lines."""
        if self.unknown is not None:
            return ()
        if os.getpid() != self._pid:
            self._close()
            self.unknown = "this process was forked within the block, and only the one that began it was watched"
            return ()
        try:
            report = self._ended()
            if report is not None:
                return self._lines(report)
            self.unknown = self._last_words() or "cowbell ended without a report, as it does when it is killed"
            return ()
        finally:
            _allow(0)
            self._close()

    def _lines(self, report: Any) -> Tuple[Line, ...]:
        run = report["run"]
        lines = [
            Line(
                file=line["file"],
                line=line["line"],
                function=line["function"] or "",
                source=line["source"] or "",
                pages=line["copied_pages_estimated"],
                error=line["copied_pages_error"],
                cause="" if line["cause"] in (None, "unknown") else line["cause"],
            )
            for line in report["script"]["lines"]
            # What this package does to begin and to end.
            if line["language"] == "python" and os.path.dirname(line["file"] or "") != _PACKAGE
        ]
        if not lines:
            if run["mode"] != "faults":
                self.unknown = f"pages could only be counted: {run['mode_reason']}"
            elif not report["totals"]["copied_pages"]:
                self.unknown = "nothing was copied while cowbell watched"
            else:
                self.unknown = (
                    f"of {report['totals']['copied_pages']:,} pages copied, none was met with a stack of Python's:"
                    " a longer block has more of them, and so has `cowbell run` of the whole program"
                )
        return tuple(line for line in lines if line.pages)

    def _close(self) -> None:
        for one in (self._socket, self._report, self._errors):
            if one is not None:
                one.close()
        self._socket = self._report = self._errors = None

    def __del__(self) -> None:
        # A block that is never ended: the tool hears of it by the socket's end.
        self._close()
