"""The tokenizer without its sockets and its thread: an Encode job in, prompt ids that have been checked out."""

import array
import logging
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from quartet.checkpoint.tokenizer_loading import is_library_error, library_errors
from quartet.runtime.core import Metrics, Sent, TimelessCore
from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.errors import ModelError, RequestError
from quartet.wire.frames import (
    ID_BYTES,
    ChatPrompt,
    Encode,
    Encoded,
    EncodeFailed,
    Grammar,
    IdsPrompt,
    Marker,
    SamplingParams,
    TextPrompt,
    TokenizerInbound,
    pack_ids,
    unpack_ids,
)
from quartet.wire.lengths import check_prompt_logprobs, context_length_exceeded, is_too_long
from tokenizer_proc.chat_template import ChatTemplate
from tokenizer_proc.messages import invalid
from tokenizer_proc.thinking import Thinking, thinking_at_end
from tokenizer_proc.tokenizer import TextEncoder
from tokenizer_proc.verdicts import Verdict, Verdicts

Answer = Encoded | EncodeFailed

log = logging.getLogger(__name__)


class TokenizerCore(TimelessCore):
    """Answers Encode jobs; stateless between them.

    Args:
        config: with the resolved model.
        encoder: the model's tokenizer.
        template: the model's chat template.
        verdicts: compiles the grammars of requests.

    Raises ModelError if either puts tokens into prompts that the model does not have.
    """

    inbound: Any = TokenizerInbound

    def __init__(self, config: Config, encoder: TextEncoder, template: ChatTemplate, verdicts: Verdicts) -> None:
        model = config.require_model()
        self._vocab_size = model.vocab_size
        self._context_length = model.context_length
        self._is_cut_later = config.scheduler.allow_auto_truncate
        self._encoder = encoder
        self._template = template
        self._verdicts = verdicts
        self._check_samples()
        self.counters: Counter[str] = Counter()

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Answer a job, also if it meets a bug; nothing else concerns this core."""
        return self.answered(frame, self.attempt(frame, self.answer)) if isinstance(frame, Encode) else []

    def attempt(self, job: Encode, work: Callable[[Encode], Answer]) -> Answer:
        """Return what `work` makes of a job, or a failure of it alone if it meets a bug."""
        try:
            return work(job)
        except BaseException as error:
            if not is_library_error(error):
                raise
            # Prompt text stays out of the log, so no message and no stack.
            log.error("job %d failed: %s", job.job, type(error).__name__)
            return EncodeFailed(job.job, 500, "internal_error", "The prompt could not be tokenized.")

    def answered(self, job: Encode, answer: Answer) -> list[Sent]:
        """Count an answer and return it as what is to be sent."""
        self.counters["tokenizer_jobs" if isinstance(answer, Encoded) else "tokenizer_failed_jobs"] += 1
        return [(job.reply_to, answer)]

    def metrics(self) -> Metrics:
        """Return what became of the jobs."""
        return Metrics({}, {name: float(count) for name, count in self.counters.items()})

    def answer(self, job: Encode) -> Answer:
        """Return the prompt's ids, text and parameters, or the error of the request. Raises no RequestError."""
        encoded = self.encode(job)
        return self.check_grammar(job, encoded) if isinstance(encoded, Encoded) else encoded

    def encode(self, job: Encode) -> Answer:
        """Return what `answer` does, its grammar as it came."""
        try:
            self._check_params(job.params)
            ids, text = self._encode(job.prompt)
            if not ids:
                raise invalid("The prompt is empty.", _field(job.prompt))
            self._check_length(len(ids) // ID_BYTES, job)
            check_prompt_logprobs(len(ids) // ID_BYTES, job.params.prompt_logprobs)
        except RequestError as error:
            return EncodeFailed(job.job, error.status, error.code, error.message, error.param)
        tokens = [self._encoder.token(index) or "" for index in unpack_ids(ids)] if job.names_tokens else None
        return Encoded(job.job, ids, text, self._with_ids(job.params), tokens)

    def _with_ids(self, params: SamplingParams) -> SamplingParams:
        """Return `params` with the ids of their markers."""
        if not params.markers:
            return params
        markers = tuple(Marker(marker.text, self._encoder.added_id(marker.text)) for marker in params.markers)
        return msgspec.structs.replace(params, markers=markers)

    def check_grammar(self, job: Encode, encoded: Encoded) -> Answer:
        """Return `encoded` with its grammar compiled; it takes up to seconds."""
        grammar = encoded.params.grammar
        if grammar is None:
            return encoded
        try:
            return _judged(encoded, grammar, self._verdicts.find(grammar, _thinking(job, encoded, grammar)))
        except ModelError as error:
            log.warning("%s", error)
            message = "this model's tokenizer cannot follow a grammar"
            return EncodeFailed(job.job, 400, "unsupported_parameter", message, grammar.param)

    def check_known_grammar(self, job: Encode, encoded: Encoded) -> Answer | None:
        """Return what `check_grammar` does, or None if something would have to be compiled."""
        grammar = encoded.params.grammar
        if grammar is None:
            return encoded
        verdict = self._verdicts.known(grammar, _thinking(job, encoded, grammar))
        return None if verdict is None else _judged(encoded, grammar, verdict)

    def _encode(self, prompt: TextPrompt | IdsPrompt | ChatPrompt) -> tuple[bytes, str]:
        """Return a prompt's ids, int32 bytes, and its text; without one for ids that are not echoed."""
        if isinstance(prompt, IdsPrompt):
            self._check_ids(prompt.ids)
            return prompt.ids, self._decoded(prompt) if prompt.is_echoed else ""
        if isinstance(prompt, TextPrompt):
            if not prompt.text:
                raise invalid("The prompt is empty.", "prompt")
            self._refuse_endless(prompt.text, prompt)
            return self._packed(
                self._encoder.encode_text(prompt.text, prompt.adds_special_tokens), "prompt"
            ), prompt.text
        text = self._template.render(prompt, self._encoder.guard.protect)
        self._refuse_endless(text, prompt)
        return self._packed(self._encoder.encode_rendered(text), "messages"), self._encoder.guard.reveal(text)

    def _decoded(self, prompt: IdsPrompt) -> str:
        return self._encoder.decode(unpack_ids(prompt.ids), prompt.skips_special_tokens)

    def _packed(self, ids: list[int], param: str) -> bytes:
        """Return `ids` as bytes; refuse a text with an added token that only the tokenizer has."""
        if max(ids, default=0) >= self._vocab_size:
            raise self._outside(max(ids), param)
        return pack_ids(ids)

    def _outside(self, index: int, param: str) -> RequestError:
        token = self._encoder.token(index)
        name = "" if token is None else f" ({token!r})"
        return invalid(f"Token id {index}{name} is outside the vocabulary (0 to {self._vocab_size - 1}).", param)

    def _check_samples(self) -> None:
        """Refuse a model whose own tokens (bos, those of its template) are outside of its vocabulary."""
        with library_errors("tokenizer and chat template do not fit"):
            samples = [self._encoder.encode_text("a"), *map(self._encoder.encode_rendered, self._template.samples())]
        for ids in samples:
            if max(ids, default=0) >= self._vocab_size:
                raise ModelError(
                    f"the tokenizer puts {self._encoder.token(max(ids))!r} (id {max(ids)}) into every prompt, but the "
                    f"model's vocab_size is {self._vocab_size}; give the model's own tokenizer with --tokenizer-path"
                )

    def _check_ids(self, data: bytes) -> None:
        if len(data) % ID_BYTES:
            raise invalid("The prompt's token ids are not whole.", "prompt")
        # Read as unsigned, a negative id is a large one.
        ids = array.array("I", data)
        if sys.byteorder == "big":
            ids.byteswap()
        if ids and max(ids) >= self._vocab_size:
            wrong = next(i for i in unpack_ids(data) if not 0 <= i < self._vocab_size)
            raise self._outside(wrong, "prompt")

    def _refuse_endless(self, text: str, prompt: TextPrompt | ChatPrompt) -> None:
        """Refuse a text of megabytes before all of it is encoded, which would delay every other job by seconds."""
        if not self._is_cut_later and self._encoder.is_longer_than(text, self._context_length):
            raise context_length_exceeded(self._context_length, f"more than {self._context_length}", _field(prompt))

    def _check_length(self, prompt_tokens: int, job: Encode) -> None:
        if not self._is_cut_later and is_too_long(self._context_length, prompt_tokens):
            raise context_length_exceeded(self._context_length, prompt_tokens, _field(job.prompt))

    def _check_params(self, params: SamplingParams) -> None:
        """Refuse token ids that the model does not have."""
        for index, _bias in params.logit_bias:
            self._check_token(index, "logit_bias")
        for index in params.stop_token_ids:
            self._check_token(index, "stop_token_ids")

    def _check_token(self, index: int, param: str) -> None:
        if not 0 <= index < self._vocab_size:
            raise invalid(f"{param}: token id {index} is outside the vocabulary (0 to {self._vocab_size - 1}).", param)


def _judged(encoded: Encoded, grammar: Grammar, verdict: Verdict) -> Answer:
    if verdict.refusal:
        message = f"{grammar.param}: {verdict.refusal}"
        return EncodeFailed(encoded.job, 400, "invalid_grammar", message, grammar.param)
    compiled = Grammar("llguidance", verdict.source, param=grammar.param)
    return msgspec.structs.replace(encoded, params=msgspec.structs.replace(encoded.params, grammar=compiled))


def _thinking(job: Encode, encoded: Encoded, grammar: Grammar) -> Thinking:
    is_continued = isinstance(job.prompt, ChatPrompt) and job.prompt.continue_final_message
    return thinking_at_end(encoded.text, grammar, is_continued)


def _field(prompt: TextPrompt | IdsPrompt | ChatPrompt) -> str:
    return "messages" if isinstance(prompt, ChatPrompt) else "prompt"
