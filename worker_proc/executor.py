"""The executor thread: owns the link, the runner and with it torch and the device.

While one step runs, it waits for whichever comes first: the next step's frame, which is launched behind it, or the end
of the running step. With two in flight the core waits for the older one.
"""

import time
from collections.abc import Callable, Iterable

from quartet.runtime.context import BlockingLink, Context, Facts
from quartet.runtime.core import Metrics, Sent
from quartet.wire.frames import WorkerInbound
from worker_proc.contract import Runner
from worker_proc.core import WARM_UP_DEADLINE_S, WorkerCore, WorkerCounters
from worker_proc.leading_runner import leading

IDLE_POLL_S = 0.05
IDLE_DEADLINE_S = 10.0
"""From one look at the link to the next. The main loop's heartbeats would go on without this thread."""
# Until the end of a step is due, the link may sleep: its timeouts are whole milliseconds, rounded down, hence a little
# more than one. After that, short polls alternate between the link and the device.
FRAME_POLL_S = 0.0012
NEXT_STEP_POLL_S = 0.0001
LOAD_DEADLINE_S = 300.0


class Executor:
    """Serves steps until `stop` is called.

    Args:
        context: the runtime; only its thread-safe parts are used, and the link, which this thread binds.
        make_runner: loads the model; called in this thread, may take minutes.
        on_ready: called from this thread with the runner's facts once the first scheduler has been answered.
        hold: for a standby, called from this thread once everything is loaded that needs no KV pool; returns when it
            has got another worker's place.
    """

    def __init__(
        self,
        context: Context,
        make_runner: Callable[[], Runner],
        on_ready: Callable[[Facts], None],
        hold: Callable[[], None] | None = None,
    ) -> None:
        self._context = context
        self._make_runner = make_runner
        self._on_ready = on_ready
        self._hold = hold
        self._core: WorkerCore | None = None
        self._is_stopping = False
        self.is_ready = False

    @property
    def counters(self) -> WorkerCounters:
        """What has been done so far. May be read from any thread."""
        return self._core.counters if self._core is not None else WorkerCounters()

    def metrics(self) -> Metrics:
        """Return the counters as metrics. May be called from any thread."""
        return self._core.metrics() if self._core is not None else Metrics({}, {})

    def stop(self) -> None:
        """Make the thread end after the current frame. May be called from any thread."""
        self._is_stopping = True

    def run(self) -> None:
        """Load the model, then serve. Raises the errors that end the process: a failed load, a lost device."""
        self.load()
        while not self._is_stopping:
            self.poll_once()

    def load(self) -> None:
        """Bind the link and load the model, in the thread that uses both. A standby binds when it gets its place."""
        context = self._context
        if self._hold is None:
            self._link: BlockingLink = context.blocking_link(WorkerInbound)
        context.set_phase("loading weights", LOAD_DEADLINE_S)
        self._runner = self._make_runner()
        self._runner.grammars.start_thread()
        if context.config.worker.tp_size > 1:
            self._runner = leading(self._runner, context.config.worker.tp_size, self._link.send)
        if self._hold is not None:
            self._runner.load_kernels()
            context.set_phase("standing by")
            self._hold()
            self._link = context.blocking_link(WorkerInbound)
            context.set_phase("counting pages", WARM_UP_DEADLINE_S)
            self._runner.count_pages()
        self._core = WorkerCore(
            context.epoch,
            self._runner,
            context.clock,
            context.config.server.step_timeout,
            context.set_phase,
            self._on_step,
        )

    def _on_step(self) -> None:
        self._context.progress()
        self._context.finished_work()

    def poll_once(self) -> None:
        """Send a hello if one is due, handle at most one frame, and send every result that is done."""
        core = self._core
        assert core is not None, "load() comes first"
        now = self._context.clock.now()
        self._send(core.greet(now, self._context.process_table))
        self._send(core.take_compiled())
        if core.is_idle():
            core.set_phase("idle", IDLE_DEADLINE_S)
            self._context.progress()
            timeout_s = FRAME_POLL_S if core.is_compiling else IDLE_POLL_S
        else:
            timeout_s = NEXT_STEP_POLL_S if core.end_is_due_within(2 * FRAME_POLL_S, now) else FRAME_POLL_S
        received = self._link.recv(timeout_s)
        if received is not None:
            self._send(core.handle(*received, self._context.clock.now()))
            self._note_readiness(core)
        elif core.is_ready and core.is_idle() and not self._runner.is_prepared:
            core.set_phase("capturing graphs", WARM_UP_DEADLINE_S)
            self._runner.prepare_next()
        elif timeout_s == NEXT_STEP_POLL_S and not core.is_oldest_done():
            # The link rounds short waits down to zero; without this sleep the thread would keep a core busy.
            time.sleep(NEXT_STEP_POLL_S)
        while core.is_oldest_done():
            self._send(core.finish_oldest())

    def _note_readiness(self, core: WorkerCore) -> None:
        if core.is_ready and not self.is_ready:
            self.is_ready = True
            self._on_ready(self._runner.facts())

    def _send(self, sent: Iterable[Sent]) -> None:
        for destination, frame in sent:
            self._link.send(destination, frame)
