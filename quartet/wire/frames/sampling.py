"""The resolved sampling parameters of a request, which every link of its path carries."""

from typing import Annotated

from msgspec import Meta

from quartet.wire.frames.base import Frame
from quartet.wire.sampling_bounds import MAX_TOP_LOGPROBS


class Grammar(Frame, frozen=True):
    """What the output has to match.

    From the api process `kind` is json_object, json_schema, regex, lark, gbnf, choice (a JSON list of strings) or tools
    (Lark, in which the rule `marker_N` stands for `markers[N]`, text that may be special tokens of the model, and
    `text_to_marker_N` for the terminal TEXT up to that and it). With
    `after`, e.g. `</think>`, thinking may come first, which ends with that text. It begins with `opening`, in the
    prompt or in the output; without one it comes first unless the prompt ends with `after`. The tokenizer process
    checks it and makes it a grammar of kind llguidance, which leaves nothing to look up.

    With `alternative` the output, after the thinking, may match that instead: `after` of it does not count.

    `whitespace` is the regex of what may stand between the tokens of JSON, where something does: "" for nothing, None
    for the default. `param` is the field that asked for it, which errors name.
    """

    kind: str
    source: str
    markers: tuple[str, ...] = ()
    after: str = ""
    opening: str = ""
    whitespace: str | None = None
    param: str = "response_format"
    alternative: "Grammar | None" = None


class Marker(Frame, frozen=True):
    """Text that a parser of the output looks for, e.g. `</think>`.

    The tokenizer process finds the `id` of the added token that it is; -1 if it is none.
    """

    text: str
    id: int = -1


class SamplingParams(Frame, frozen=True):
    """Resolved sampling parameters of one request; nothing is left to be drawn or defaulted downstream.

    `max_new_tokens` None means the rest of the context; the scheduler clamps it (LEN-2). `seed` is drawn by the api
    process when the client gave none. `logprobs` is -1 for none, else the number of alternatives beside the sampled
    token; `prompt_logprobs` is the same for the tokens of the prompt. `stop_token_ids` are the client's; the model's
    end-of-sequence ids are added unless `ignore_eos`.
    `markers` are shown even if they are special tokens and `skip_special_tokens`.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(le=MAX_TOP_LOGPROBS)] = -1
    stop: tuple[str, ...] = ()
    include_stop_in_output: bool = False
    skip_special_tokens: bool = True
    grammar: Grammar | None = None
    markers: tuple[Marker, ...] = ()
    prompt_logprobs: Annotated[int, Meta(le=MAX_TOP_LOGPROBS)] = -1
