"""What a client has seen of one request, checked as it comes: nothing lost, doubled or altered, one end (faults G1)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from quartet.client.request import Output
from quartet.wire.errors import RequestError
from quartet.wire.frames import Encoded, Finish, TextLogprobs
from quartet.wire.ids import Rid


@dataclass
class Choice:
    """The output of one choice."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TextLogprobs] = field(default_factory=list)
    prompt: list[TextLogprobs] = field(default_factory=list)
    finish: Finish | None = None


class History:
    """Implements quartet.client.request.Listener for one request.

    Args:
        expected: the choices of an undisturbed run, which every output must continue to agree with.
        has_logprobs: whether each id must come with its log-probabilities.
        has_prompt: whether the log-probabilities of the prompt must come first.
    """

    def __init__(
        self,
        rid: Rid,
        num_choices: int,
        expected: Sequence[Choice] | None = None,
        has_logprobs: bool = False,
        has_prompt: bool = False,
    ) -> None:
        self.rid, self.num_choices, self.is_settled = rid, num_choices, False
        self.choices = [Choice() for _ in range(num_choices)]
        self.prompt_tokens = 0
        self.error: RequestError | None = None
        self._expected = expected
        self._has_logprobs = has_logprobs
        self._has_prompt = has_prompt

    @property
    def is_over(self) -> bool:
        """Whether every choice has ended, or the request has failed."""
        return self.error is not None or all(choice.finish for choice in self.choices)

    def on_encoded(self, encoded: Encoded) -> None:
        self.prompt_tokens = len(encoded.ids) // 4

    def on_accepted(self, choice: int, max_new_tokens: int) -> None:
        pass

    def on_error(self, error: RequestError) -> None:
        assert not self.is_over, "an error after the end"
        self.error = error

    def on_outputs(self, outputs: list[Output]) -> None:
        for output in outputs:
            choice = self.choices[output.choice]
            assert choice.finish is None and self.error is None, "output after the end"
            if output.logprobs and output.logprobs[0].rank:
                self._take_prompt(choice, output, output.logprobs)
                continue
            assert bool(choice.prompt) == self._has_prompt, "output ahead of the prompt's log-probabilities"
            choice.ids += output.ids
            choice.text += output.text
            choice.logprobs += output.logprobs or []
            choice.finish = output.finish
            if self._has_logprobs:
                assert len(choice.logprobs) == len(choice.ids), "log-probabilities are missing, or come twice"
            if output.finish is not None:
                self._check_end(choice, output.finish)
            if self._expected is not None:
                self._compare(choice, self._expected[output.choice])

    def _take_prompt(self, choice: Choice, output: Output, prompt: list[TextLogprobs]) -> None:
        assert self._has_prompt and not choice.prompt and not choice.ids, "unwanted, repeated or late"
        assert not output.ids and not output.text and output.finish is None
        assert len(prompt) == self.prompt_tokens and [one.rank for one in prompt].count(-1) == 1
        choice.prompt = prompt
        if self._expected is not None:
            # A prompt that is computed in other chunks may differ in the last bits, and in ranks of like tokens.
            expected = self._expected[output.choice].prompt
            assert [one.token for one in prompt] == [one.token for one in expected]
            assert all(abs(a.logprob - b.logprob) < 1e-3 for a, b in zip(prompt, expected, strict=True))

    def _check_end(self, choice: Choice, finish: Finish) -> None:
        assert finish.count == len(choice.ids), "the count of the end is not that of the output"
        assert 0 <= finish.timings.cached_tokens <= self.prompt_tokens, "more cached tokens than the prompt has"

    @staticmethod
    def _compare(choice: Choice, expected: Choice) -> None:
        assert choice.ids == expected.ids[: len(choice.ids)], "the ids are not those of an undisturbed run"
        assert expected.text.startswith(choice.text), "the text is not that of an undisturbed run"
        if choice.logprobs:
            # A recomputed prefix may differ in the last bits of a log-probability; names and offsets may not.
            shown = [(one.token, one.offset) for one in choice.logprobs]
            assert shown == [(one.token, one.offset) for one in expected.logprobs[: len(shown)]], "other tokens"
        if choice.finish is not None:
            assert expected.finish is not None and choice.ids == expected.ids and choice.text == expected.text
            assert (choice.finish.reason, choice.finish.matched) == (expected.finish.reason, expected.finish.matched)

    def check(self) -> None:
        """The request has ended well, in every choice."""
        assert self.error is None, f"{self.error}"
        assert self.is_over, "the request has not ended"
