"""The engine in one process, and the page to read first: the cores that `quartet serve` runs as processes, on one pump.

    generate ─► tokenizer ─► scheduler ─► worker ─► scheduler ─► detokenizer ─► Answer
                encode       schedule     run       postprocess  detokenize

Each core takes frames and returns frames. The pump carries them; when none is left to carry, the worker waits for its
oldest step, whose result leads to the next frames. The scheduler keeps two steps in flight, so the host works while
the device does. Batching, prefix cache, policies and retraction are the scheduler's, as when serving.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.progress import Progress

from detok_proc.core import DetokCore
from detok_proc.incremental import DecoderFactory
from quartet.answer import Answer, SamplingParams
from quartet.checkpoint.resolve import resolve_model
from quartet.checkpoint.script_file import read_script
from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.client.core import ClientCore
from quartet.client.request import GenerateRequest
from quartet.runtime.clock import MonotonicClock
from quartet.runtime.core import Core
from quartet.runtime.pump import Pump
from quartet.settings import keyword_config
from quartet.wire import frames
from quartet.wire.codec import Source
from quartet.wire.frames import ChatPrompt, IdsPrompt, ProcessStatus, ProcessTable, TextPrompt, pack_ids
from quartet.wire.ids import Epoch, Rid, Role, process_name
from scheduler_proc.scheduler_core import SchedulerCore
from tokenizer_proc.process import load_core
from worker_proc.core import WorkerCore
from worker_proc.start_up import make_runner

EPOCH = Epoch(1)
CLIENT = Source(Role.API, 0, EPOCH)
Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class LLM:
    """An engine in this process; one thread uses it at a time.

    Args:
        model: folder in Hugging Face layout, .gguf file, hub id, or smollm2.
        settings: fields of the configuration's sections model, scheduler and worker, e.g. dtype or schedule_policy.

    Raises ConfigError or ModelError for what cannot be started.
    """

    def __init__(self, model: str = "smollm2", **settings: Any) -> None:
        config = keyword_config({"model_path": model, **settings})
        script = read_script(config.worker.simulated_script)
        config = self.config = msgspec.structs.replace(config, resolved=resolve_model(config.model), script=script)
        self._clock = MonotonicClock()
        self._seeds = random.Random(config.scheduler.random_seed)
        self._last_rid = 0
        runner = make_runner(config, self._clock, lambda: None, {})
        self._client = ClientCore(process_name(Role.API, 0))
        self.scheduler = SchedulerCore(config, EPOCH)
        cores: dict[Role, Core] = {
            Role.API: self._client,
            Role.TOKENIZER: load_core(config),
            Role.SCHEDULER: self.scheduler,
            Role.WORKER: WorkerCore(EPOCH, runner, self._clock),
            Role.DETOK: DetokCore(DecoderFactory(tokenizer_folder(config))),
        }
        self._pump = Pump(self._clock)
        for role, core in cores.items():
            self._pump.add(process_name(role, 0), Source(role, 0, EPOCH), core)
        # The worker greets the scheduler, learns how many pages to allocate, and warms up.
        self._pump.announce(ProcessTable([ProcessStatus(role, 0, 0, EPOCH, "ready", "", 0) for role in cores], False))
        self._pump.run()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        n: int = 1,
        progress: bool = False,
    ) -> list[Answer]:
        """Continue each prompt, a text or token ids, `n` times; returns the answers in the order of the prompts.

        `params` is for all prompts, or one for each; without, the model's own defaults hold. A prompt that is refused,
        or fails, has an Answer with an error; the others are not affected. `progress` shows a bar.
        """
        is_one = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        several: Any = [prompts] if is_one else prompts
        wire = [TextPrompt(one) if isinstance(one, str) else IdsPrompt(pack_ids([*one])) for one in several]
        return self._answer(wire, params, n, progress)

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        n: int = 1,
        progress: bool = False,
    ) -> list[Answer]:
        """Answer each conversation, a list of {"role": ..., "content": ...}; otherwise like `generate`."""
        is_one = bool(conversations) and isinstance(conversations[0], Mapping)
        several: Any = [conversations] if is_one else conversations
        return self._answer([ChatPrompt(json.dumps(one).encode()) for one in several], params, n, progress)

    def _answer(self, prompts: Sequence[Any], params: Any, n: int, progress: bool) -> list[Answer]:
        every = params if isinstance(params, Sequence) else [params] * len(prompts)
        with Progress(disable=not progress) as bars:
            bar = bars.add_task("sequences", total=len(prompts) * n)
            answers = [Answer(self._next_rid(), n, lambda: bars.advance(bar)) for _ in prompts]
            try:
                for prompt, one, answer in zip(prompts, every, answers, strict=True):
                    request = GenerateRequest(prompt=prompt, params=self._resolved(one), n=n, rid=answer.rid)
                    self._pump.send(CLIENT, self._client.generate(request, answer, self._clock.now()))
                self._pump.run()
            finally:
                # Only an interrupt leaves requests behind.
                for answer in answers:
                    self._pump.send(CLIENT, self._client.abort(answer, self._clock.now()))
        return answers

    def _resolved(self, params: SamplingParams | None) -> frames.SamplingParams:
        """Return parameters in which nothing is left to be drawn or defaulted."""
        given = self.config.require_model().default_sampling if params is None else msgspec.structs.asdict(params)
        drawn = {"seed": self._seeds.getrandbits(63)} if given.get("seed") is None else {}
        return frames.SamplingParams(**{**given, **drawn})

    def _next_rid(self) -> Rid:
        self._last_rid += 1
        return Rid(self._last_rid.to_bytes(16, "big"))
