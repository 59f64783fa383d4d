"""The supervisor's loop: start, watch, restart. One asyncio loop, no ZeroMQ. It acts first and reports then."""

import asyncio
import secrets
import signal
from collections.abc import Sequence

import msgspec

from quartet.runtime.lifetime import stop_signals
from quartet.supervisor.failure import EXIT_GAVE_UP, Failure, failure_of
from quartet.supervisor.listener import open_listener, url_of
from quartet.supervisor.notify import Notifier
from quartet.supervisor.plan import ProcessSpec, plan_processes
from quartet.supervisor.progress import Facts, Progress
from quartet.supervisor.ranks import Ranks
from quartet.supervisor.restart import RestartPolicy
from quartet.supervisor.rundir import RunDirectory
from quartet.supervisor.shutdown import Shutdown
from quartet.supervisor.slot import ProcessSlot
from quartet.supervisor.spawn import Child
from quartet.supervisor.standby import Standby
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError, FrameError, ModelError
from quartet.wire.frames import (
    Assignment,
    Drained,
    Exempt,
    Fatal,
    Heartbeat,
    ProcessTable,
    Ready,
    SupervisorInbound,
)
from quartet.wire.ids import Epoch, Role

TICK_S = 0.1
OWN_GAP_S = 0.5
START_RETRY_S = 1.0
UNKILLABLE_S = 30.0
"""How long a killed process may take to end; one that the kernel holds has the device, so none can follow it."""


class Supervisor:
    """Runs one launch to its end.

    Args:
        config: complete and validated, with the model resolved.
        plan: the processes; benchmarks replace the api processes by another client. `opening`: lines for the user.
    """

    def __init__(self, config: Config, plan: list[ProcessSpec] | None = None, opening: Sequence[str] = ()) -> None:
        self._config = config
        self._boot_id = secrets.randbits(63)
        limit = config.server.restart_limit
        self._slots = [ProcessSlot(spec, RestartPolicy(limit)) for spec in plan or plan_processes(config)]
        self._standby, self._ranks = Standby(self._slots), Ranks(self._slots)
        self._progress = Progress(opening, config.monitoring.log_format == "json")
        self._notifier, self._was_ready = Notifier(), False
        self._facts: Facts = {}
        self._process_table = ProcessTable([], False)
        self._pending_starts: set[asyncio.TimerHandle] = set()

    def run(self) -> int:
        """Serve until a signal; returns the exit code. Raises ConfigError if the launch cannot be started."""
        server = self._config.server
        run_dir = RunDirectory.create(server.run_dir, self._boot_id, self._progress.line)
        run_dir.start_janitor()
        try:
            listener = open_listener(server.host, server.port)
            self._run_dir, self._listener = run_dir, listener
            try:
                return asyncio.run(self._serve())
            except FrameError as error:
                raise ConfigError(f"the configuration is too large, perhaps the chat template: {error}") from error
            except OSError as error:
                if self._was_ready:
                    raise
                raise ConfigError(f"no process can be started: {error.strerror}; see ulimit -a") from error
            finally:
                listener.close()
        finally:
            run_dir.remove()
            self._notifier.close()

    async def _serve(self) -> int:
        loop = asyncio.get_running_loop()
        self._loop = loop
        limit_s = self._config.server.shutdown_timeout
        self._shutdown = Shutdown(self._slots, limit_s, self._broadcast, self._progress.line)
        for number in stop_signals():
            loop.add_signal_handler(number, self._on_signal, number)
        for slot in self._slots:
            if not slot.spec.is_spare:
                self._start(slot)
        watch = loop.create_task(self._watch())
        try:
            return await self._shutdown.exit_code
        finally:
            watch.cancel()
            self._kill_all()
            if self._shutdown.failure is not None:
                is_debugging = self._config.monitoring.log_level == "debug"
                self._shutdown.failure.show(self._progress.stamp(), self._run_dir.path.parent, is_debugging)

    def _on_signal(self, number: signal.Signals) -> None:
        self._shutdown.on_signal(number, self._was_ready)

    # Starts, deaths, restarts

    def _start(self, slot: ProcessSlot) -> None:
        slot.epoch = self._ranks.next_epoch(slot)
        listen_fd = self._listener.fileno() if slot.spec.role is Role.API else -1
        assignment = Assignment(
            self._boot_id,
            slot.spec.role,
            slot.spec.rank,
            Epoch(slot.epoch),
            str(self._run_dir.path),
            self._config,
            listen_fd,
            slot.was_ready,
        )
        now = self._loop.time()
        child = self._standby.take(slot, now)
        if child is not None:
            child.promote(slot.spec, assignment, now)
            self._progress.line(f"{slot.spec.name}: the standby (pid {child.pid}) takes over")
        slot.child = child = child or Child(slot.spec, assignment, listen_fd, now)
        self._loop.add_reader(child.pidfd, self._on_exit, slot, child)
        self._loop.add_reader(child.channel.socket.fileno(), self._on_control, slot, child)
        self._loop.add_reader(child.errors.descriptor, self._on_errors, child)
        self._broadcast(force=True)

    def _on_errors(self, child: Child) -> None:
        if not child.errors.forward(self._loop.time()):
            self._loop.remove_reader(child.errors.descriptor)

    def _on_exit(self, slot: ProcessSlot, child: Child) -> None:
        # A Fatal or Drained that was sent just before the end may still be unread, as may its last words.
        self._on_control(slot, child)
        self._unwatch(child)
        code = child.reap()
        now = self._loop.time()
        if slot.child is child:
            slot.child = None
        if child.is_drained or self._shutdown.has_failed:
            return
        self._standby.on_exit(slot, code)
        self._ranks.on_exit(slot, child, code)
        failure = failure_of(slot, child, code, now)
        if failure is not None and not slot.spec.is_spare:
            self._shutdown.fail(failure, self._was_ready)
            return
        cause = child.explain(code, now)
        delay_s = slot.policy.on_death(now, slot.epoch, child.was_useful)
        if slot.spec.is_spare:
            outcome = self._standby.on_death(None if child.has_lasting_error else delay_s, now)
            self._broadcast()
            self._progress.line(f"{cause}; {outcome}")
            return
        if delay_s is None:
            self._fail(EXIT_GAVE_UP, f"{cause}; it ends without work too often; giving up")
            return
        slot.on_death(child, code, now)
        self._restart_later(slot, delay_s)
        self._broadcast()
        self._progress.line(f"{cause}; starting it again")

    def _fail(self, exit_code: int, cause: str) -> None:
        self._shutdown.fail(Failure(exit_code, cause), self._was_ready)

    def _restart_later(self, slot: ProcessSlot, delay_s: float) -> None:
        self._pending_starts.add(self._loop.call_later(delay_s, self._restart, slot))

    def _restart(self, slot: ProcessSlot) -> None:
        if self._shutdown.has_failed or self._shutdown.exit_code.done() or slot.child is not None:
            return
        try:
            self._start(slot)
        except OSError as error:
            # The machine is short of memory, processes or descriptors, which may pass.
            self._restart_later(slot, START_RETRY_S)
            self._progress.line(f"{slot.spec.name} cannot be started: {error.strerror}; trying again")

    def _kill_all(self) -> None:
        for handle in self._pending_starts:
            handle.cancel()
        for slot in self._slots:
            if slot.child is not None:
                slot.child.kill()
        for slot in self._slots:
            if slot.child is not None:
                self._unwatch(slot.child)
                slot.child.reap()

    def _unwatch(self, child: Child) -> None:
        while child.errors.forward(self._loop.time()):
            pass
        for descriptor in (child.pidfd, child.channel.socket.fileno(), child.errors.descriptor):
            self._loop.remove_reader(descriptor)

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

    def _on_message(self, slot: ProcessSlot, child: Child, message: SupervisorInbound) -> None:
        match message:
            case Heartbeat():
                child.liveness.on_heartbeat(message, self._loop.time())
                self._announce()
                if not child.is_ready and not self._shutdown.is_draining:
                    self._progress.phase(slot.spec.name, message.phase)
            case Ready():
                child.is_ready = True
                child.errors.release()
                slot.on_ready(self._loop.time())
                self._facts.update(message.facts)
                self._progress.phase(slot.spec.name, "ready")
                self._broadcast()
            case Exempt():
                for one in self._ranks.of(message.role, message.rank):
                    one.policy.forgive(message.epoch)
            case Drained():
                child.is_drained = True
            case Fatal():
                child.fatal = message

    def _announce(self) -> None:
        """Print the ready line once the api processes have read a process table with every role ready."""
        if self._was_ready or not all(slot.is_up for slot in self._slots):
            return
        if all(slot.has_seen(self._process_table) for slot in self._slots if slot.spec.role is Role.API):
            self._was_ready = True
            url = url_of(self._listener)
            self._progress.ready(self._config, url, self._facts)
            self._notifier.send(READY=1, STATUS=f"ready at {url}/v1")

    def _broadcast(self, force: bool = False) -> None:
        now = self._loop.time()
        is_draining, has_failed = self._shutdown.is_draining, self._shutdown.has_failed
        processes = [slot.status(is_draining, now) for slot in self._slots]
        last = self._process_table
        if is_draining and not last.is_draining:
            self._notifier.send(STOPPING=1)
        process_table = ProcessTable(processes, is_draining, last.serial, has_failed)
        if not force and process_table == last:
            return
        process_table = self._process_table = msgspec.structs.replace(process_table, serial=last.serial + 1)
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
                    slot.grant_grace(now)
            last = now
            self._notifier.keep_alive(now)
            cause = self._run_dir.keep(now, self._progress.line)
            if cause is not None:
                self._fail(ModelError.exit_code, cause)
            for slot in self._slots:
                if slot.child is not None:
                    self._check(slot, slot.child, now)
            due = self._standby.due(now)
            if due is not None and not self._shutdown.is_draining:
                self._restart(due)
            self._broadcast()

    def _check(self, slot: ProcessSlot, child: Child, now: float) -> None:
        child.channel.flush()
        # A heartbeat may wait unread, after a pause of this process.
        self._on_control(slot, child)
        if child.killed_s is not None:
            if now - child.killed_s > UNKILLABLE_S:
                cause = f"{slot.spec.name} (pid {child.pid}) does not end after SIGKILL"
                self._fail(EXIT_GAVE_UP, f"{cause}; giving up")
            return
        reason = child.hang(now)
        if reason is not None:
            child.killed_s = now
            child.kill()
            self._progress.line(f"{slot.spec.name} (pid {child.pid}) hangs: {reason}; killed")
