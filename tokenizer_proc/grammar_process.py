"""The tokenizer process's side of its grammar child: starts it with the first grammar, asks it, and replaces it."""

import signal

import msgspec

from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.wire.config import Config
from quartet.wire.errors import ModelError
from quartet.wire.frames import Grammar
from tokenizer_proc.child import Child
from tokenizer_proc.child_frames import Compile, Compiled, NotCompiled, Open
from tokenizer_proc.grammar_bounds import GrammarError, check_bounds
from tokenizer_proc.thinking import Thinking

DEADLINE_S = 1.0
ATTEMPTS = 2
"""A child that has died of something other than the grammar gets it once more."""
MODULE = "tokenizer_proc.grammar_child"

_OF_THE_GRAMMAR = {
    -signal.SIGPROF: "it takes too much processor time to compile",
    -signal.SIGABRT: "it needs too much memory to compile",
    -signal.SIGSEGV: "it is nested too deeply to compile",
}
"""Why a child dies of what it was given: a library in Rust aborts without memory, and overflows its stack."""
_decode = msgspec.json.Decoder(Compiled | NotCompiled).decode


class GrammarProcess:
    """Implements Compiler by a child process. For one thread at a time.

    Args:
        config: with the resolved model.
        deadline_s: of processor time for a grammar.
    """

    def __init__(self, config: Config, deadline_s: float = DEADLINE_S) -> None:
        model = config.require_model()
        self._open = Open(str(tokenizer_folder(config)), model.vocab_size, model.eos_token_ids)
        self._deadline_s = deadline_s
        self._child: Child | None = None
        self._is_unusable = ""

    @property
    def pid(self) -> int | None:
        """The process id of the child, if there is one."""
        return None if self._child is None else self._child.pid

    def compile(self, grammar: Grammar, thinking: Thinking) -> str:
        """Return the source of the grammar of kind llguidance; raises GrammarError, ModelError."""
        check_bounds(grammar)
        for _ in range(ATTEMPTS):
            child = self._child or self._start()
            answer = child.ask(Compile(grammar, thinking, self._deadline_s))
            if answer is not None:
                return _source(_decode(answer))
            self._child = None
            if reason := _OF_THE_GRAMMAR.get(child.reap(), ""):
                raise GrammarError(reason)
        raise GrammarError("it has ended the process that compiles it")

    def close(self) -> None:
        """End the child, whatever it does."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _start(self) -> Child:
        if self._is_unusable:
            raise ModelError(self._is_unusable)
        child = Child(MODULE)
        data = child.ask(self._open)
        answer = None if data is None else _decode(data)
        if isinstance(answer, Compiled):
            self._child = child
            return child
        child.close()
        if answer is None:
            raise ModelError("the process that loads the tokenizer for grammars has died")
        self._is_unusable = answer.reason
        raise ModelError(self._is_unusable)


def _source(answer: Compiled | NotCompiled) -> str:
    if isinstance(answer, NotCompiled):
        raise GrammarError(answer.reason)
    return answer.source
