"""A request's output on its way to the client: where it goes, and how much of it has gone.

delivery.py changes it. The hot loop of results.py sends plain tokens itself and brings `sent_count` up to date.
"""

from quartet.wire.frames import ID_BYTES, Submit, TokenLogprobs
from quartet.wire.ids import Handle


class Stream:
    """The stream of one request; counts are output tokens from the first on.

    `delivered_count` were delivered to the client before the current attempt, `sent_count` have been sent to the
    detokenizer. `handle` names the request there while `is_open`. `logprobs` are those of the last outputs, as far as
    they were computed here; those of the first `released_count` outputs are forgotten, because they were delivered.
    `wants_prompt`: the client wants log-probabilities of the prompt, and has not got them.
    `first_token_s` is when the first output was sampled here, -1 before. `live_misses` counts the LiveRequests in a row
    that have not named the request.
    """

    __slots__ = (
        "attempt",
        "delivered_count",
        "detok",
        "first_token_s",
        "handle",
        "is_open",
        "live_misses",
        "logprobs",
        "released_count",
        "reply_to",
        "sent_count",
        "wants_prompt",
    )

    def __init__(self, submit: Submit) -> None:
        self.bind(submit)
        self.handle = Handle(0)
        self.is_open = False
        self.sent_count = self.delivered_count
        self.logprobs: list[TokenLogprobs] = []
        self.released_count = 0
        self.first_token_s = -1.0

    def bind(self, submit: Submit) -> None:
        """Take attempt, addresses and delivered outputs from a Submit."""
        self.attempt = submit.attempt
        self.reply_to = submit.reply_to
        self.detok = submit.detok
        self.delivered_count = len(submit.output_ids) // ID_BYTES
        self.wants_prompt = submit.params.prompt_logprobs >= 0
        self.live_misses = 0

    def note_live(self, is_named: bool) -> int:
        """A LiveRequests has come; returns how many in a row have not named the request."""
        self.live_misses = 0 if is_named else self.live_misses + 1
        return self.live_misses

    def release_logprobs(self, delivered_count: int, output_count: int) -> None:
        """Forget the log-probabilities of outputs that were delivered: no later attempt needs them."""
        surplus = len(self.logprobs) - (output_count - delivered_count)
        if surplus > 0:
            del self.logprobs[:surplus]
            self.released_count = delivered_count

    def logprobs_from(self, index: int, output_count: int) -> list[TokenLogprobs]:
        """Return the log-probabilities of outputs `index` to `output_count`, as far as they were computed here."""
        missing = output_count - index
        return self.logprobs[max(0, len(self.logprobs) - missing) :] if missing > 0 else []
