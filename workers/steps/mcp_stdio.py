"""An MCP server that is a program: messages are lines of its stdin and stdout.

The SDK's own transport keeps a line of any length, passes on more of the environment than is wanted, and takes
up to seven seconds to end the program.

Source: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#stdio, and
https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#shutdown for how it is ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import ByteReceiveStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from orchestrator.errors import StepFailed
from workers.steps import processes
from workers.steps.contract import StepContext
from workers.steps.mcp_transports import Link, Server, Streams
from workers.steps.program_output import LogBudget, LogLines, clean

_CHUNK = 64 * 1024
_GRACE = 1.0
"""Seconds that the program has to end once its stdin is closed, and again once it got SIGTERM."""
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ")
_LOGGED = 1000
"""Bytes that are logged of a line on stdout that is no message."""
_REST = 1024 * 1024
"""Bytes that are still read of stderr once the program has ended: something that got away may write on."""


class StdioServer(Server):
    """It runs in an empty folder, with an environment of its own; what it writes to stderr is its log. Nothing that
    it started outlives the call."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], context: StepContext) -> None:
        self.shown = f"the MCP server {name!r}"
        self._command = command
        self._env = env
        self._mark = processes.new_mark(context.step_execution_id)
        self._prefix = f"orchestrator-{context.step_execution_id}-mcp-"
        self._process: subprocess.Popen[bytes] | None = None
        self._exit_code: int | None = None
        self._link: Link | None = None
        # The step's log has the same limit, and says itself that it is reached.
        self._stderr = LogLines(self._log, LogBudget(context.settings.executor.max_log, lambda: None))
        if context.attempt > 1:
            self._remove_leftovers(processes.mark_of(context.step_execution_id))

    @contextmanager
    def running(self, link: Link, ends: float) -> Iterator[None]:
        self._link = link
        with tempfile.TemporaryDirectory(prefix=self._prefix, ignore_cleanup_errors=True) as folder:
            process = self._process = self._start(folder)
            with _pipes(process):
                try:
                    yield
                finally:
                    self._end(process, ends)

    @asynccontextmanager
    async def connect(self, link: Link) -> AsyncGenerator[Streams]:
        from_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, to_server = anyio.create_memory_object_stream[SessionMessage](0)
        with from_server, incoming, outgoing, to_server:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, from_server, link)
                tasks.start_soon(self._write, to_server, from_server)
                tasks.start_soon(self._read_stderr)
                try:
                    yield incoming, outgoing
                finally:
                    tasks.cancel_scope.cancel()

    def said(self) -> str:
        code, line = self._exit_code, self._stderr.last_line()
        return ("" if code is None else f"; it ended with {_status(code)}") + (line and f"; it last said: {line}")

    def kill(self) -> None:
        processes.kill_all(self._mark)

    # -- the program -------------------------------------------------------------------------------------------

    def _start(self, folder: str) -> subprocess.Popen[bytes]:
        environment = {
            "LANG": "C.UTF-8",
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            "HOME": folder,
            "TMPDIR": folder,
            **self._env,
            processes.MARKER: self._mark,
        }
        try:
            return subprocess.Popen(
                self._command,
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise StepFailed(
                f"{self.shown} cannot be started as {self._command[0]!r}: {reason} (mcp.servers)",
                kind="config",
                retryable=False,
            ) from None

    def _end(self, process: subprocess.Popen[bytes], ends: float) -> None:
        assert process.stdin is not None
        try:
            process.stdin.close()
            if not _has_ended(process, min(_GRACE, max(0.0, ends - time.monotonic()))):
                _signal_group(process, signal.SIGTERM)
                _has_ended(process, _GRACE)
            else:
                self._exit_code = process.returncode
        finally:
            _signal_group(process, signal.SIGKILL)
            processes.kill_all(self._mark)
            process.wait()
            self._finish_stderr()

    def _remove_leftovers(self, mark: str) -> None:
        """End what an earlier attempt left on this machine when its worker was killed."""
        processes.kill_all(mark)
        for folder in Path(tempfile.gettempdir()).glob(f"{self._prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _log(self, line: str) -> None:
        if self._link is not None:
            self._link.log(line, "info")

    # -- its pipes ---------------------------------------------------------------------------------------------

    async def _read(self, messages: MemoryObjectSendStream[SessionMessage | Exception], link: Link) -> None:
        lines = BufferedByteReceiveStream(_Pipe(_of(self._process).stdout, link.take))
        with suppress(anyio.IncompleteRead, anyio.ClosedResourceError, anyio.BrokenResourceError), messages:
            while True:
                # No limit here: `link` ends the call when too much has come.
                line = await lines.receive_until(b"\n", max_bytes=sys.maxsize)
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    link.log(f"on stdout, but no message: {clean(line[:_LOGGED])}", "warning")
                    continue
                await messages.send(SessionMessage(message))

    async def _write(
        self,
        messages: MemoryObjectReceiveStream[SessionMessage],
        from_server: MemoryObjectSendStream[SessionMessage | Exception],
    ) -> None:
        stdin = _descriptor(_of(self._process).stdin)
        try:
            async for item in messages:
                left = memoryview(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                while left:
                    await anyio.wait_writable(stdin)
                    with suppress(BlockingIOError):
                        left = left[os.write(stdin, left) :]
        except BrokenPipeError:
            # A program that reads no more will not answer, even if it runs on.
            from_server.close()

    async def _read_stderr(self) -> None:
        stderr = _Pipe(_of(self._process).stderr, lambda _: None)
        with suppress(anyio.EndOfStream):
            while True:
                self._stderr.feed(await stderr.receive())

    def _finish_stderr(self) -> None:
        """What it wrote last is what it died of."""
        stderr = _descriptor(_of(self._process).stderr)
        with suppress(BlockingIOError):
            for _ in range(_REST // _CHUNK):
                self._stderr.feed(os.read(stderr, _CHUNK))
        self._stderr.end()


class _Pipe(ByteReceiveStream):
    """A pipe as a stream. The pipe is not the stream's to close: its number may be another's by then."""

    def __init__(self, pipe: IO[bytes] | None, take: Callable[[int], None]) -> None:
        self._descriptor = _descriptor(pipe)
        self._take = take

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        while True:
            # Before every read: a program that never pauses must not keep the loop from its other tasks.
            await anyio.wait_readable(self._descriptor)
            try:
                chunk = os.read(self._descriptor, max_bytes)
            except BlockingIOError:
                continue
            if not chunk:
                raise anyio.EndOfStream
            self._take(len(chunk))
            return chunk

    async def aclose(self) -> None:
        pass


def _of(process: subprocess.Popen[bytes] | None) -> subprocess.Popen[bytes]:
    assert process is not None, "connect() belongs inside running()"
    return process


def _descriptor(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    return pipe.fileno()


@contextmanager
def _pipes(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ours of its three pipes never block, and are closed at the end."""
    with process.stdin as stdin, process.stdout as stdout, process.stderr as stderr:  # type: ignore[union-attr]
        for pipe in (stdin, stdout, stderr):
            os.set_blocking(pipe.fileno(), False)
        yield


def _has_ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is not None


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _status(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
