"""api ── Encode | CancelEncode ──► tokenizer ── Encoded | EncodeFailed ──► api"""

from quartet.wire.frames.base import Frame, check_ids
from quartet.wire.frames.sampling import SamplingParams
from quartet.wire.ids import Address


class TextPrompt(Frame, frozen=True, tag="text"):
    """Plain text to encode; special tokens are added as the tokenizer's own post-processor would, or not at all."""

    text: str
    adds_special_tokens: bool = True


class IdsPrompt(Frame, frozen=True, tag="ids"):
    """Ids to be checked against the vocabulary. int32 bytes. Their text is made only if it `is_echoed`, without special
    tokens if it `skips_special_tokens`."""

    ids: bytes
    is_echoed: bool = False
    skips_special_tokens: bool = False


class ChatPrompt(Frame, frozen=True, tag="chat"):
    """A conversation to render with the model's chat template.

    `messages` and `tools` are JSON bytes, `template_args` JSON bytes of allow-listed extra template variables.
    """

    messages: bytes
    tools: bytes | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_args: bytes | None = None


class Encode(Frame, frozen=True, tag=1):
    """Job for a tokenizer. `job` is unique among all incarnations of the api process `reply_to`.

    A job whose tokenizer died is sent again, and so is one without an answer; a duplicate of a job that waits or runs
    is ignored. Jobs of different `tenant`s take turns. With `names_tokens` the answer has the tokens of the ids.
    """

    job: int
    reply_to: Address
    prompt: TextPrompt | IdsPrompt | ChatPrompt
    params: SamplingParams
    tenant: str = ""
    names_tokens: bool = False


class CancelEncode(Frame, frozen=True, tag=4):
    """The job's request has ended: a job that still waits needs no answer. Idempotent."""

    job: int
    reply_to: Address


class Encoded(Frame, frozen=True, tag=2):
    """Reply to Encode: prompt ids (int32 bytes), the prompt's text (empty for ids that are not echoed), parameters
    checked and cleaned, and the vocabulary's tokens for the ids if they were requested."""

    job: int
    ids: bytes
    text: str
    params: SamplingParams
    tokens: list[str] | None = None

    def __post_init__(self) -> None:
        check_ids(self.ids)


class EncodeFailed(Frame, frozen=True, tag=3):
    """The job's request is at fault (or rendering failed): becomes a RequestError in the api process."""

    job: int
    status: int
    code: str
    message: str
    param: str | None = None
