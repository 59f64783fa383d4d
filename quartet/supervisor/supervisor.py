"""The supervisor's loop: start, watch, restart, drain. One asyncio loop, no thread, no ZeroMQ."""

import asyncio
import os
import secrets
import signal
import socket

from quartet.supervisor.plan import DRAIN_ORDER, ProcessSpec, plan_processes
from quartet.supervisor.progress import Facts, Progress
from quartet.supervisor.restart import RestartPolicy
from quartet.supervisor.rundir import RunDirectory
from quartet.supervisor.spawn import Child, listening_socket
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError, FrameError
from quartet.wire.frames import Assignment, Drain, Drained, Fatal, Heartbeat, ProcessStatus, ProcessTable, Ready
from quartet.wire.ids import Epoch, Role

TICK_S = 0.1
START_TIMEOUT_S = 60.0
OWN_GAP_S = 1.0
INNER_DRAIN_S = 2.0
EXIT_GAVE_UP = 70
EXIT_FATAL = 3


class ProcessSlot:
    """One process of the plan: its current child, epoch and restarts."""

    def __init__(self, spec: ProcessSpec, policy: RestartPolicy) -> None:
        self.spec = spec
        self.policy = policy
        self.child: Child | None = None
        self.epoch = 0
        self.restarts = 0

    def has_seen(self, process_table: ProcessTable) -> bool:
        """Return whether the process has read this process table."""
        return (
            self.child is not None
            and self.child.beat is not None
            and self.child.beat.table_serial >= process_table.serial
        )

    def status(self, is_draining: bool) -> ProcessStatus:
        """Return this process's row of the process table."""
        child = self.child
        if child is None:
            state, phase, pid = "down", "", 0
        else:
            state = "starting" if not child.is_ready else "draining" if is_draining else "ready"
            phase, pid = (child.beat.phase if child.beat else "starting"), child.pid
        return ProcessStatus(self.spec.role, self.spec.rank, pid, Epoch(self.epoch), state, phase, self.restarts)


class Supervisor:
    """Runs one launch to its end.

    Args:
        config: complete and validated, with the model resolved.
        plan: the processes; benchmarks replace the api processes by another client.
    """

    def __init__(self, config: Config, plan: list[ProcessSpec] | None = None) -> None:
        self._config = config
        self._boot_id = secrets.randbits(63)
        self._slots = [
            ProcessSlot(spec, RestartPolicy(config.server.restart_limit)) for spec in plan or plan_processes(config)
        ]
        self._progress = Progress()
        self._facts: Facts = {}
        self._was_ready = False
        self._is_draining = False
        self._drain_task: asyncio.Task[None] | None = None
        self._exit_code: asyncio.Future[int] | None = None
        self._process_table = ProcessTable([], False)
        self._pending_starts: set[asyncio.TimerHandle] = set()

    def run(self) -> int:
        """Serve until a signal; returns the exit code. Raises ConfigError if the port or the run directory cannot be
        used."""
        server = self._config.server
        run_dir = RunDirectory.create(server.run_dir, self._boot_id)
        run_dir.start_janitor()
        try:
            listener = self._listen(server.host, server.port)
            self._run_dir, self._listener = run_dir, listener
            try:
                return asyncio.run(self._serve())
            except FrameError as error:
                raise ConfigError(f"the configuration is too large, perhaps the chat template: {error}") from error
            finally:
                listener.close()
        finally:
            run_dir.remove()

    @staticmethod
    def _listen(host: str, port: int) -> socket.socket:
        try:
            return listening_socket(host, port)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; "
                "choose another with --host and --port (0 picks a free port)"
            ) from error

    @property
    def url(self) -> str:
        """The address of the HTTP API."""
        host, port = self._listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def _serve(self) -> int:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._exit_code = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        for slot in self._slots:
            self._start(slot)
        watch = loop.create_task(self._watch())
        try:
            return await self._exit_code
        finally:
            watch.cancel()
            self._kill_all()

    # Starts, deaths, restarts

    def _start(self, slot: ProcessSlot) -> None:
        slot.epoch += 1
        is_api = slot.spec.role is Role.API
        listen_fd = self._listener.fileno() if is_api else -1
        assignment = Assignment(
            self._boot_id,
            slot.spec.role,
            slot.spec.rank,
            Epoch(slot.epoch),
            str(self._run_dir.path),
            self._config,
            listen_fd,
        )
        child = Child(slot.spec, assignment, listen_fd, self._loop.time())
        slot.child = child
        self._loop.add_reader(child.pidfd, self._on_exit, slot, child)
        self._loop.add_reader(child.channel.socket.fileno(), self._on_control, slot, child)
        self._broadcast(force=True)

    def _on_exit(self, slot: ProcessSlot, child: Child) -> None:
        self._loop.remove_reader(child.pidfd)
        # A Fatal or Drained that was sent just before the end may still be unread.
        self._on_control(slot, child)
        self._loop.remove_reader(child.channel.socket.fileno())
        code = child.reap()
        if slot.child is child:
            slot.child = None
        if child.is_drained:
            return
        if child.fatal is not None:
            self._progress.line(f"{slot.spec.name}: {child.fatal}")
            self._finish(EXIT_FATAL)
            return
        now = self._loop.time()
        cause = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        delay_s = slot.policy.on_death(now, now - child.started_s, child.is_ready)
        if delay_s is None:
            self._progress.line(f"{slot.spec.name} (pid {child.pid}) ended by {cause} too often; giving up")
            self._finish(EXIT_GAVE_UP)
            return
        self._progress.line(f"{slot.spec.name} (pid {child.pid}) ended by {cause}; starting it again")
        slot.restarts += 1
        self._broadcast()
        handle = self._loop.call_later(delay_s, self._restart, slot)
        self._pending_starts.add(handle)

    def _restart(self, slot: ProcessSlot) -> None:
        if self._exit_code is not None and not self._exit_code.done() and slot.child is None:
            self._start(slot)

    def _finish(self, code: int) -> None:
        if self._exit_code is not None and not self._exit_code.done():
            self._exit_code.set_result(code)

    def _kill_all(self) -> None:
        for handle in self._pending_starts:
            handle.cancel()
        for slot in self._slots:
            if slot.child is not None:
                slot.child.kill()
        for slot in self._slots:
            if slot.child is not None:
                self._loop.remove_reader(slot.child.pidfd)
                self._loop.remove_reader(slot.child.channel.socket.fileno())
                slot.child.reap()

    # Frames from children

    def _on_control(self, slot: ProcessSlot, child: Child) -> None:
        while True:
            try:
                message = child.channel.receive()
            except OSError:
                return
            if message is None:
                if slot.child is child:
                    self._loop.remove_reader(child.channel.socket.fileno())
                return
            self._on_message(slot, child, message)

    def _on_message(self, slot: ProcessSlot, child: Child, message: Heartbeat | Ready | Drained | Fatal) -> None:
        match message:
            case Heartbeat():
                child.on_heartbeat(message, self._loop.time())
                self._announce()
                if not child.is_ready and not self._is_draining:
                    self._progress.phase(slot.spec.name, message.phase)
            case Ready():
                child.is_ready = True
                self._facts.update(message.facts)
                self._progress.phase(slot.spec.name, "ready")
                self._broadcast()
            case Drained():
                child.is_drained = True
            case Fatal():
                child.fatal = message.message

    def _announce(self) -> None:
        """Print the ready line once the api processes have read a process table with every role ready."""
        if self._was_ready or not all(slot.child is not None and slot.child.is_ready for slot in self._slots):
            return
        if all(slot.has_seen(self._process_table) for slot in self._slots if slot.spec.role is Role.API):
            self._was_ready = True
            self._progress.ready(self._config, self.url, self._facts)

    def _broadcast(self, force: bool = False) -> None:
        processes = [slot.status(self._is_draining) for slot in self._slots]
        last = self._process_table
        if not force and processes == last.processes and self._is_draining == last.is_draining:
            return
        process_table = self._process_table = ProcessTable(processes, self._is_draining, last.serial + 1)
        for slot in self._slots:
            if slot.child is not None:
                slot.child.channel.send(process_table)

    # Hang detection

    async def _watch(self) -> None:
        last = self._loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            if now - last > OWN_GAP_S:
                for slot in self._slots:
                    if slot.child is not None:
                        slot.child.grant_grace(now)
            last = now
            for slot in self._slots:
                if slot.child is not None:
                    self._check(slot, slot.child, now)
            self._broadcast()

    def _check(self, slot: ProcessSlot, child: Child, now: float) -> None:
        child.channel.flush()
        reason = child.hang(now, self._config.server.hang_timeout, START_TIMEOUT_S)
        if reason is not None:
            self._progress.line(f"{slot.spec.name} (pid {child.pid}) hangs: {reason}; killing it")
            child.grant_grace(now)
            child.kill()

    # Drain

    def _on_signal(self) -> None:
        if self._is_draining or not self._was_ready:
            self._finish(0)
            return
        self._is_draining = True
        self._progress.line(f"draining, at most {self._config.server.shutdown_timeout:g} s; once more to stop at once")
        self._broadcast()
        self._drain_task = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        for role in DRAIN_ORDER:
            limit_s = self._config.server.shutdown_timeout if role is Role.API else INNER_DRAIN_S
            children = [slot.child for slot in self._slots if slot.child is not None and slot.spec.role is role]
            for child in children:
                child.channel.send(Drain(limit_s))
            deadline = self._loop.time() + limit_s + INNER_DRAIN_S
            while any(child.process.poll() is None for child in children) and self._loop.time() < deadline:
                await asyncio.sleep(0.02)
        self._finish(0)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
