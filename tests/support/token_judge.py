"""Measures by how much one token was better than another, by plain torch on the CPU: a near-tie, or a mistake."""

from pathlib import Path

import torch

from quartet.wire.frames import Chunk, Enter, SamplingParams, Step, pack_ids
from tests.support.local_engine import EPOCH, make_config
from worker_proc.sampler.philox import exponentials, stream_key


class TokenJudge:
    """Runs prompts through the torch backend in fp32. Args: the model's folder, and one with a tokenizer."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        from worker_proc.loading import load_runner

        config = make_config(folder, tokenizer=tokenizer, attention_backend="torch", max_total_tokens=2048)
        self._vocab_size = config.require_model().vocab_size
        self._runner = load_runner(config, lambda: None)
        self._runner.allocate(self._runner.capacity.page_count)

    def scores(self, ids: list[int], params: SamplingParams) -> torch.Tensor:
        """Return what the arg-max over the vocabulary is taken of after `ids`, [vocab] float64, up to a constant.

        These are log-probabilities, or for a draw log-probabilities / temperature plus the draw's own noise."""
        page_size = self._runner.capacity.page_size
        pages = pack_ids([*range(1, len(ids) // page_size + 2)])
        params_of_all = SamplingParams(temperature=0.0, logprobs=self._vocab_size)
        enter = Enter(0, 0, pack_ids(ids), len(ids), 0, pages, params_of_all, 0)
        self._runner.reset()
        step = Step(EPOCH, 0, b"", [enter], b"", [Chunk(0, len(ids), True)], False)
        result = self._runner.launch(step, EPOCH).wait()
        scores = torch.empty(self._vocab_size, dtype=torch.float64)
        index, values = zip(*result.logprobs[0][1].top, strict=True)
        scores[list(index)] = torch.tensor(values, dtype=torch.float64)
        if params.temperature <= 0.0:
            return scores
        key = stream_key(params.seed, 0)
        low, high, position = (torch.tensor([word]) for word in (key & 0xFFFFFFFF, key >> 32, len(ids)))
        return scores / params.temperature - exponentials(low, high, position, self._vocab_size)[0].log().double()

    def gap(self, ids: list[int], better: int, other: int, params: SamplingParams) -> float:
        """Return by how much `better` beats `other` after `ids`; filters such as top_p are not taken into account."""
        scores = self.scores(ids, params)
        return float(scores[better] - scores[other])
