"""What became of grammars that were compiled: one that comes again costs nothing, whether it was good or bad.

The least recently used are forgotten, so that clients whose every grammar is another take no more memory.
"""

import collections
import hashlib
import threading
from typing import NamedTuple, Protocol

import msgspec

from quartet.wire.frames import Grammar
from tokenizer_proc.grammar_bounds import GrammarError
from tokenizer_proc.thinking import Thinking

MAX_BYTES = 16 << 20
_ENTRY_BYTES = 256
"""What an entry takes beside its text."""


class Compiler(Protocol):
    """Makes grammars of kind llguidance (tokenizer_proc.grammars)."""

    def compile(self, grammar: Grammar, thinking: Thinking) -> str:
        """Return the source; raises GrammarError, and ModelError if no grammar can be used with the model."""
        ...


class Verdict(NamedTuple):
    """The source of a grammar, or why it is refused."""

    source: str
    refusal: str


class Verdicts:
    """Asks a compiler once for each grammar. Methods may be called from any thread.

    Args:
        compiler: used by one thread at a time.
        max_bytes: bound on the texts that are kept.
    """

    def __init__(self, compiler: Compiler, max_bytes: int = MAX_BYTES) -> None:
        self._compiler = compiler
        self._max_bytes = max_bytes
        self._known: collections.OrderedDict[bytes, Verdict] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def known(self, grammar: Grammar, thinking: Thinking) -> Verdict | None:
        """Return what became of the same grammar before."""
        key = _key(grammar, thinking)
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def find(self, grammar: Grammar, thinking: Thinking) -> Verdict:
        """Return what becomes of a grammar, compiling it if it is not known."""
        found = self.known(grammar, thinking)
        if found is None:
            try:
                found = Verdict(self._compiler.compile(grammar, thinking), "")
            except GrammarError as error:
                found = Verdict("", str(error) or "it cannot be used")
            self._keep(_key(grammar, thinking), found)
        return found

    def _keep(self, key: bytes, verdict: Verdict) -> None:
        with self._lock:
            before = self._known.pop(key, None)
            self._bytes += _size(verdict) - (_size(before) if before else 0)
            self._known[key] = verdict
            while self._bytes > self._max_bytes:
                self._bytes -= _size(self._known.popitem(last=False)[1])


def _key(grammar: Grammar, thinking: Thinking) -> bytes:
    """Return a digest of all that decides about a grammar; the field that asked for it does not."""
    same = msgspec.structs.replace(grammar, param="")
    return hashlib.sha256(thinking.encode() + b" " + msgspec.msgpack.encode(same)).digest()


def _size(verdict: Verdict) -> int:
    return len(verdict.source.encode()) + len(verdict.refusal.encode()) + _ENTRY_BYTES
