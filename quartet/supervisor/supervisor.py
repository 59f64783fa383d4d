"""The supervisor's loop: start, watch, restart, drain. One asyncio loop, no ZeroMQ. It acts first and reports then."""

import asyncio
import secrets
import signal
import socket

from quartet.runtime.lifetime import stop_signals
from quartet.supervisor.plan import DRAIN_ORDER, ProcessSpec, plan_processes
from quartet.supervisor.progress import Facts, Progress
from quartet.supervisor.restart import RestartPolicy
from quartet.supervisor.rundir import RunDirectory
from quartet.supervisor.slot import ProcessSlot
from quartet.supervisor.spawn import Child, listening_socket
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError, FrameError
from quartet.wire.frames import Assignment, Drain, Drained, Fatal, Heartbeat, ProcessTable, Ready
from quartet.wire.ids import Epoch, Role

TICK_S = 0.1
START_TIMEOUT_S = 60.0
OWN_GAP_S = 1.0
START_RETRY_S = 1.0
SAME_REQUEST_S = 0.1
"""Signals closer to each other than this are one request to end."""
INNER_DRAIN_S = 2.0
EXIT_GAVE_UP = 70
EXIT_FATAL = 3


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
        self._stop_requested_s = 0.0
        self._exit_code: asyncio.Future[int] | None = None
        self._process_table = ProcessTable([], False)
        self._pending_starts: set[asyncio.TimerHandle] = set()

    def run(self) -> int:
        """Serve until a signal; returns the exit code. Raises ConfigError if the port or the run directory cannot be
        used."""
        server = self._config.server
        run_dir = RunDirectory.create(server.run_dir, self._boot_id, self._progress.line)
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
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no host name"
            raise ConfigError(
                f"cannot listen on {_netloc(host, port)}: {reason}; "
                "choose another with --host and --port (0 picks a free port)"
            ) from error

    @property
    def url(self) -> str:
        """The address of the HTTP API."""
        host, port = self._listener.getsockname()[:2]
        return f"http://{_netloc(host, port)}"

    async def _serve(self) -> int:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._exit_code = loop.create_future()
        for number in stop_signals():
            loop.add_signal_handler(number, self._on_signal, number)
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
            self._finish(EXIT_FATAL)
            self._progress.line(f"{slot.spec.name}: {child.fatal}")
            return
        now = self._loop.time()
        cause = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        delay_s = slot.policy.on_death(now, now - child.started_s, child.is_ready)
        if delay_s is None:
            self._finish(EXIT_GAVE_UP)
            self._progress.line(f"{slot.spec.name} (pid {child.pid}) ended by {cause} too often; giving up")
            return
        slot.restarts += 1
        slot.was_killed = code == -signal.SIGKILL and not child.is_hung
        self._restart_later(slot, delay_s)
        self._broadcast()
        self._progress.line(f"{slot.spec.name} (pid {child.pid}) ended by {cause}; starting it again")

    def _restart_later(self, slot: ProcessSlot, delay_s: float) -> None:
        self._pending_starts.add(self._loop.call_later(delay_s, self._restart, slot))

    def _restart(self, slot: ProcessSlot) -> None:
        if self._exit_code is None or self._exit_code.done() or slot.child is not None:
            return
        try:
            self._start(slot)
        except OSError as error:
            # The machine is short of memory, processes or descriptors, which may pass.
            self._restart_later(slot, START_RETRY_S)
            self._progress.line(f"{slot.spec.name} cannot be started: {error.strerror}; trying again")

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
            child.grant_grace(now)
            child.is_hung = True
            child.kill()
            self._progress.line(f"{slot.spec.name} (pid {child.pid}) hangs: {reason}; killed")

    # Drain

    def _on_signal(self, number: signal.Signals) -> None:
        """Drain; stop at once before readiness, or if the user insists.

        A group's leader may get one request twice, from `timeout` for example, or SIGHUP after SIGTERM."""
        now = self._loop.time()
        if not self._was_ready:
            self._finish(0)
        elif self._drain_task is None:
            self._is_draining = True
            self._stop_requested_s = now
            self._drain_task = self._loop.create_task(self._drain())
            self._broadcast()
            limit_s = self._config.server.shutdown_timeout
            self._progress.line(f"draining, at most {limit_s:g} s; once more to stop at once")
        elif number != signal.SIGHUP and now - self._stop_requested_s > SAME_REQUEST_S:
            self._finish(0)

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


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
