"""Requests whose grammar the worker has yet to compile: none is queued before, so that no step waits for a compiler.

The worker is asked once for each grammar, again after ASK_AGAIN_S without an answer, and again when another worker is
up, then for the grammars of live requests, too. A worker that has dropped a grammar in the meantime compiles it when
its request enters.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from quartet.wire.errors import RequestError
from quartet.wire.frames import CompileGrammar, GrammarCompiled, Submit
from quartet.wire.ids import Rid

ASK_AGAIN_S = 2.0
MOST_READY = 256
MOST_CRASHES = 2
"""Workers that may end while they compile a grammar before it is refused."""


@dataclass(slots=True)
class HeldSubmit:
    """A request that waits for its grammar, until `limit_s` at the latest. `misses`: how often the api process has not
    named it in a row."""

    submit: Submit
    key: bytes
    since_s: float
    limit_s: float
    misses: int = 0


@dataclass(slots=True)
class _Asked:
    """A grammar that the worker has been asked for; `crashes` are workers that have ended by themselves since."""

    source: str
    asked_s: float
    crashes: int = 0


class GrammarQueue:
    """Which grammars are compiled, and the requests that wait for one."""

    def __init__(self) -> None:
        self._held: list[HeldSubmit] = []
        self._asked: dict[bytes, _Asked] = {}
        self._ready: OrderedDict[bytes, None] = OrderedDict()
        self._is_up = False

    def __len__(self) -> int:
        return len(self._held)

    # Requests

    def must_wait(self, submit: Submit) -> bool:
        """Say whether the request has a grammar that is not compiled."""
        if submit.params.grammar is None:
            return False
        key = _key(submit.params.grammar.source)
        if key in self._ready:
            self._ready.move_to_end(key)
            return False
        return True

    def hold(self, submit: Submit, limit_s: float, now: float) -> CompileGrammar | None:
        """Keep a request until its grammar is compiled, or `limit_s`; return what is to be asked of the worker."""
        assert submit.params.grammar is not None
        source = submit.params.grammar.source
        key = _key(source)
        self._held.append(HeldSubmit(submit, key, now, limit_s))
        if key in self._asked:
            return None
        self._asked[key] = _Asked(source, now)
        return CompileGrammar(key, source)

    def find(self, rid: Rid, choice: int) -> HeldSubmit | None:
        """Return a request that is held."""
        matching = (held for held in self._held if held.submit.rid == rid and held.submit.choice == choice)
        return next(matching, None)

    def submits(self) -> list[Submit]:
        """Return what is held."""
        return [held.submit for held in self._held]

    def take(self, is_taken: Callable[[HeldSubmit], bool]) -> list[HeldSubmit]:
        """Return the requests that are to be taken out, in the order of their arrival; asks once about each."""
        decided = [(held, is_taken(held)) for held in self._held]
        self._held = [held for held, is_it in decided if not is_it]
        return [held for held, is_it in decided if is_it]

    # What the worker answers

    def take_compiled(self, compiled: GrammarCompiled) -> list[HeldSubmit]:
        """Take an answer; return the requests that have waited for it."""
        self._asked.pop(compiled.key, None)
        if not compiled.error:
            self._ready[compiled.key] = None
            if len(self._ready) > MOST_READY:
                self._ready.popitem(last=False)
        return self.take(lambda held: held.key == compiled.key)

    def on_worker_up(self, live: Iterable[str], now: float) -> list[CompileGrammar]:
        """A worker has compiled nothing yet: return what it is asked for. `live`: grammars of live requests."""
        self._is_up = True
        self._ready.clear()
        wanted = {held.key for held in self._held}
        asked = {key: one for key, one in self._asked.items() if key in wanted}
        for source in live:
            key = _key(source)
            asked.setdefault(key, self._asked.get(key) or _Asked(source, now))
        self._asked = asked
        return [*self._ask(asked, now)]

    def on_worker_lost(self, has_crashed: bool) -> list[HeldSubmit]:
        """Return the requests whose grammars have ended one worker after the other."""
        self._is_up = False
        if has_crashed:
            for one in self._asked.values():
                one.crashes += 1
        return self.take(lambda held: self._asked[held.key].crashes >= MOST_CRASHES)

    # Time

    def ask_again(self, now: float) -> list[CompileGrammar]:
        """Return what has been asked for a while ago, without an answer."""
        if not self._is_up:
            return []
        return [*self._ask([key for key, one in self._asked.items() if one.asked_s + ASK_AGAIN_S <= now], now)]

    def take_expired(self, now: float) -> list[HeldSubmit]:
        """Return the requests whose time has run out."""
        return self.take(lambda held: held.limit_s <= now)

    def next_deadline(self) -> float | None:
        """Return when there is something to ask or to end."""
        limits = [held.limit_s for held in self._held if held.limit_s < math.inf]
        due = [one.asked_s + ASK_AGAIN_S for one in self._asked.values()] if self._is_up else []
        return min([*limits, *due], default=None)

    def _ask(self, keys: Iterable[bytes], now: float) -> Iterator[CompileGrammar]:
        for key in keys:
            self._asked[key].asked_s = now
            yield CompileGrammar(key, self._asked[key].source)


def compile_error(error: str) -> RequestError:
    """Return what refuses a request whose grammar the worker cannot compile."""
    return RequestError(400, "invalid_grammar", f"The grammar cannot be used: {error}")


def crash_error() -> RequestError:
    """Return what refuses a request whose grammar ends the workers that compile it."""
    return RequestError(400, "invalid_grammar", "The grammar cannot be used: its compiler has ended twice.")


def _key(source: str) -> bytes:
    return blake2b(source.encode(), digest_size=16).digest()
