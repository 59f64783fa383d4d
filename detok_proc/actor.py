"""The shell of the detokenizer process: loads the vocabulary, passes frames to the core and sends its output."""

from detok_proc.core import DetokCore
from detok_proc.incremental import DecoderFactory
from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.runtime.actor import Context, Metrics
from quartet.wire.codec import Source
from quartet.wire.frames import DetokInbound, ProcessTable


class DetokActor:
    """Actor of the role DETOK. Keeps nothing that Open does not rebuild."""

    inbound = DetokInbound
    is_threaded = False

    def __init__(self, context: Context) -> None:
        self._context = context
        self._core: DetokCore | None = None

    async def start(self) -> dict[str, str | int | float]:
        """Load the vocabulary; raises ModelError if it is missing or damaged."""
        factory = DecoderFactory(tokenizer_folder(self._context.config))
        self._core = DetokCore(factory)
        return {"decoder": factory.vocabulary.family.value if factory.vocabulary.family else "general"}

    def on_frame(self, source: Source, frame: DetokInbound) -> None:
        """Take one frame and send what it yields."""
        if self._core is None:
            return
        for destination, answer in self._core.handle(source, frame):
            self._context.send(destination, answer)

    def on_batch_end(self) -> None:
        """Nothing is gathered beyond a frame."""

    def on_process_table(self, process_table: ProcessTable) -> None:
        """Destinations are process names, which restarts do not change."""

    def metrics(self) -> Metrics:
        """Open streams, tokens taken and what was dropped."""
        if self._core is None:
            return Metrics({}, {})
        counters = {name: float(count) for name, count in self._core.counters.items()}
        return Metrics({"detok_streams": float(self._core.stream_count)}, counters)

    async def drain(self, limit_s: float) -> None:
        """Frames are answered as they come, so there is nothing to finish."""

    async def close(self) -> None:
        """Nothing to release."""
