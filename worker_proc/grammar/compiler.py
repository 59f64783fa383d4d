"""Compiles grammars, each once: ahead of the step that needs one in a thread, or when a slot asks for its matcher."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from llguidance import LLMatcher, LLTokenizer

from quartet.checkpoint.grammar_tokenizer import grammar_limits
from quartet.checkpoint.tokenizer_loading import is_library_error

logger = logging.getLogger(__name__)

MOST_GRAMMARS = 256
MOST_SOURCE_BYTES = 16 << 20
MOST_AHEAD = 256
"""Grammars that wait for the thread; one more is dropped, and the scheduler asks for it again."""
COMPILE_TIMEOUT_S = 45.0
"""How long a step waits for the thread. The tokenizer, which comes first, takes a second, on a busy machine many."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled grammar, of which each slot gets a copy, or why there is none."""

    matcher: LLMatcher | None
    error: str = ""


class GrammarCompiler:
    """The grammars that are compiled, least recently used first. Used by one thread; another compiles.

    Args:
        load_tokenizer: returns the tokenizer of the model; called once, by what compiles the first grammar.
        max_grammars, max_source_bytes: what is kept.
    """

    def __init__(
        self,
        load_tokenizer: Callable[[], LLTokenizer],
        max_grammars: int = MOST_GRAMMARS,
        max_source_bytes: int = MOST_SOURCE_BYTES,
    ) -> None:
        self._load_tokenizer = load_tokenizer
        self._max_grammars, self._max_source_bytes = max_grammars, max_source_bytes
        self._tokenizer: LLTokenizer | None = None
        self._grammars: OrderedDict[str, Future[Compiled]] = OrderedDict()
        self._source_bytes = 0
        self._ahead: dict[bytes, Future[Compiled]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def start_thread(self) -> None:
        """Compile ahead in a thread from here on; before, `compile_ahead` returns when it has compiled."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "grammars")

    def compile_ahead(self, key: bytes, source: str) -> None:
        """Compile a grammar; `take_compiled` returns its key. Dropped if too many wait."""
        if len(self._ahead) >= MOST_AHEAD:
            return
        future = self._find(source)
        if future is None:
            future = self._keep(source, Future())
            if self._thread is None:
                future.set_result(self._compile(source))
            else:
                self._thread.submit(self._settle, future, source)
        self._ahead[key] = future

    def take_compiled(self) -> list[tuple[bytes, str]]:
        """Return the keys whose grammars have been compiled since the last call, each with its error or nothing."""
        if not self._ahead:
            return []
        done = [(key, future.result().error) for key, future in self._ahead.items() if future.done()]
        for key, _ in done:
            del self._ahead[key]
        return done

    @property
    def is_busy(self) -> bool:
        """Whether `take_compiled` will return more."""
        return bool(self._ahead)

    def tokenizer(self) -> LLTokenizer:
        """Return the tokenizer. Raises ModelError for one that cannot be loaded."""
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        return self._tokenizer

    def matcher(self, source: str) -> Compiled:
        """Return the compiled grammar, not to be changed. Compiles it where that has not begun; else waits for the
        thread, for COMPILE_TIMEOUT_S at most."""
        future = self._find(source)
        if future is None:
            future = self._keep(source, Future())
            future.set_result(self._compile(source))
        try:
            return future.result(COMPILE_TIMEOUT_S)
        except TimeoutError:
            return Compiled(None, f"it has not been compiled within {COMPILE_TIMEOUT_S:.0f} s")

    def _find(self, source: str) -> "Future[Compiled] | None":
        future = self._grammars.get(source)
        if future is not None:
            self._grammars.move_to_end(source)
        return future

    def _keep(self, source: str, future: "Future[Compiled]") -> "Future[Compiled]":
        self._grammars[source] = future
        self._source_bytes += len(source)
        is_full = len(self._grammars) > self._max_grammars
        while (is_full or self._source_bytes > self._max_source_bytes) and len(self._grammars) > 1:
            dropped, _ = self._grammars.popitem(last=False)
            self._source_bytes -= len(dropped)
            is_full = False
        return future

    def _settle(self, future: "Future[Compiled]", source: str) -> None:
        future.set_result(self._compile(source))

    def _compile(self, source: str) -> Compiled:
        try:
            matcher = LLMatcher(self.tokenizer(), source, log_level=0, limits=grammar_limits())
            if matcher.is_error():
                return Compiled(None, matcher.get_error())
            # Makes what its copies share, so that the first mask of a request takes no longer than others.
            matcher.deep_copy().compute_bitmask()
            return Compiled(matcher)
        except BaseException as error:
            if not is_library_error(error):
                raise
            logger.exception("a grammar of %d characters could not be compiled", len(source))
            return Compiled(None, f"{type(error).__name__}: {error}")
