"""Flags of vLLM and SGLang: the names of our settings there, what others mean in them, and why some mean nothing.

A flag that asks for what happens anyway is accepted; one that asks for anything else is refused in one line that says
what to use. None is ignored without a word.
"""

from collections.abc import Mapping
from typing import NamedTuple

from quartet.settings.fields import SETTINGS, flag_of
from quartet.wire.errors import ConfigError

ALIASES: dict[str, tuple[str, ...]] = {
    "model_path": ("--model",),
    "tokenizer_path": ("--tokenizer",),
    "quantization": ("-q",),
    "context_length": ("--max-model-len",),
    "max_running_requests": ("--max-num-seqs",),
    "max_queued_requests": ("--max-num-queued-reqs",),
    "max_queued_tokens": ("--max-num-queued-tokens",),
    "max_prefill_tokens": ("--max-num-batched-tokens",),
    "mem_fraction_static": ("--gpu-memory-utilization", "--memory-ratio"),
    "page_size": ("--block-size",),
    "tp_size": ("--tensor-parallel-size", "--tp", "-tp"),
    "deterministic": ("--enable-deterministic-inference",),
    "disable_radix_cache": ("--no-enable-prefix-caching",),
    "disable_cuda_graph": ("--enforce-eager",),
    "cuda_graph_max_bs": ("--cuda-graph-max-bs-decode", "--max-cudagraph-capture-size"),
    "random_seed": ("--seed",),
    "log_level": ("--uvicorn-log-level",),
    "log_requests": ("--enable-log-requests",),
    "api_procs": ("--api-server-count",),
    "tokenizer_procs": ("--tokenizer-worker-num",),
    "detok_procs": ("--detokenizer-worker-num",),
    "step_timeout": ("--watchdog-timeout",),
}
"""Flags for the same setting, beside the flag named after the field."""

NEGATIONS: dict[str, tuple[str, ...]] = {
    "disable_radix_cache": ("--enable-prefix-caching",),
    "disable_cuda_graph": ("--no-enforce-eager",),
    "disable_metrics": ("--enable-metrics",),
    "log_requests": ("--disable-log-requests", "--no-enable-log-requests"),
}
"""Flags that turn a switch off, beside --no- and its name."""


class OtherFlag(NamedTuple):
    """A flag that is no name of one setting.

    `meanings` maps the values that are accepted, "" for a switch, to settings; any other value is one of the setting
    `otherwise`, in its unit, or refused with `line`. An accepted switch shows `line` as a note.
    """

    names: tuple[str, ...]
    line: str
    meanings: Mapping[str, Mapping[str, str]] = {}
    is_switch: bool = False
    otherwise: str = ""
    is_in_pages: bool = False

    def settings(self) -> set[str]:
        """Return the settings that the flag may give."""
        return {self.otherwise} - {""} | {name for meaning in self.meanings.values() for name in meaning}


def _only(values: str, line: str, *names: str) -> OtherFlag:
    return OtherFlag(names, line, {value: {} for value in values.split()})


def _never(line: str, *names: str) -> OtherFlag:
    return OtherFlag(names, line)


def _switch(line: str, *names: str, is_accepted: bool) -> OtherFlag:
    return OtherFlag(names, line, {"": {}} if is_accepted else {}, True)


ONE_GPU = "run an engine for each, behind a router; --tp-size alone divides a model among GPUs, of one machine"
GRAPHS = "not needed here: steps are CUDA graphs of kernels that are compiled at the start"
FIRST_LOW = "schedule_low_priority_values_first"

OTHER_FLAGS = (
    # What they mean in our settings.
    OtherFlag(
        ("--scheduling-policy",),
        "",
        {"priority": {"schedule_policy": "fcfs", "enable_priority_scheduling": "true", FIRST_LOW: "true"}},
        otherwise="schedule_policy",
    ),
    OtherFlag(
        ("--priority-sign",),
        "give -1 where low values are urgent, 1 where high values are",
        {"-1": {FIRST_LOW: "true"}, "1": {FIRST_LOW: "false"}},
    ),
    OtherFlag(("--num-gpu-blocks-override",), "", otherwise="max_total_tokens", is_in_pages=True),
    OtherFlag(
        ("--disable-chunked-prefill", "--no-enable-chunked-prefill"), "", {"": {"chunked_prefill_size": "-1"}}, True
    ),
    # One value is what happens anyway.
    _only("1", ONE_GPU, "--data-parallel-size", "--dp-size", "--dp", "-dp"),
    _only("1", ONE_GPU, "--pipeline-parallel-size", "--pp-size", "--pp", "-pp"),
    _only("1", ONE_GPU, "--expert-parallel-size", "--ep-size", "--ep"),
    _only("1", ONE_GPU, "--nnodes"),
    _only("0", ONE_GPU, "--node-rank"),
    _only("mp uni", "a worker is a process for each GPU", "--distributed-executor-backend"),
    _only(
        "auto llguidance guidance",
        "llguidance compiles every grammar",
        "--grammar-backend",
        "--guided-decoding-backend",
    ),
    _only("0", "KV is not swapped: what a request loses is computed again", "--swap-space"),
    _only("0", "weights and KV stay in the memory of the device", "--cpu-offload-gb"),
    _only("auto", "the tokenizer is the model's tokenizer.json", "--tokenizer-mode"),
    _only("auto", "the model's code is Quartet's own", "--model-impl"),
    _only("auto generate", "only generation is served", "--runner", "--task"),
    _only("auto none", "only generation is served", "--convert"),
    _only("auto", "defaults are those of generation_config.json; a request overrides them", "--generation-config"),
    _only("model", "defaults are those of generation_config.json; a request overrides them", "--sampling-defaults"),
    _only("auto", "the content format follows from the chat template", "--chat-template-content-format"),
    _only("assistant", "answers have the role assistant", "--response-role"),
    _only("1", "each step makes one token", "--num-scheduler-steps", "--num-continuous-decode-steps"),
    # What they ask for happens anyway.
    _switch(
        "not needed here: prompts are computed in chunks; see --chunked-prefill-size",
        "--enable-chunked-prefill",
        is_accepted=True,
    ),
    _switch(
        "not needed here: tools are served where the chat template shows them",
        "--enable-auto-tool-choice",
        is_accepted=True,
    ),
    _switch(
        "not needed here: usage always counts cached tokens",
        "--enable-cache-report",
        "--enable-prompt-tokens-details",
        is_accepted=True,
    ),
    _switch("not needed here: X-Request-Id is always returned", "--enable-request-id-headers", is_accepted=True),
    _switch("not needed here: GET /v1/loads is always served", "--enable-server-load-tracking", is_accepted=True),
    _switch("not needed here: steps always overlap", "--async-scheduling", is_accepted=True),
    _switch(GRAPHS, "--enable-torch-compile", is_accepted=True),
    _switch(
        "not needed here: GPUs exchange data by NCCL alone",
        "--disable-custom-all-reduce",
        "--enable-p2p-check",
        is_accepted=True,
    ),
    # What is not done here, and what to use.
    _switch("not needed here: no code of a model folder is executed", "--trust-remote-code", is_accepted=False),
    _switch("steps always overlap", "--disable-overlap-schedule", "--no-async-scheduling", is_accepted=False),
    _switch(
        "the tokenizer is always loaded; a request may give ids instead of text",
        "--skip-tokenizer-init",
        is_accepted=False,
    ),
    _switch("embedding models are not supported", "--is-embedding", is_accepted=False),
    _switch("LoRA adapters are not supported", "--enable-lora", is_accepted=False),
    _switch(
        "there is one cache level: KV in the memory of the device", "--enable-hierarchical-cache", is_accepted=False
    ),
    _switch("mixture-of-experts models are not supported", "--enable-expert-parallel", is_accepted=False),
    _switch("a request asks for it by stream_options.include_usage", "--enable-force-include-usage", is_accepted=False),
    _never("LoRA adapters are not supported", "--lora-modules", "--lora-paths", "--max-loras", "--max-lora-rank"),
    _never(
        "drafts come from the request's own text: give --speculative-tokens N",
        "--speculative-algorithm",
        "--speculative-config",
        "--speculative-draft-model-path",
        "--speculative-num-steps",
    ),
    _never("only text is served", "--limit-mm-per-prompt"),
    _never(GRAPHS + "; see --disable-cuda-graph", "--compilation-config"),
    _never("use --cuda-graph-max-bs, the largest decode batch of a graph", "--max-seq-len-to-capture"),
    _never("llguidance compiles every grammar", "--structured-outputs-config"),
    _never("there is one sampler", "--sampling-backend"),
    _never("use --max-total-tokens, the KV capacity in tokens", "--kv-cache-memory-bytes"),
    _never("set HF_TOKEN in the environment", "--hf-token"),
    _never("set HF_HOME in the environment; models of a hub lie in its cache", "--download-dir"),
    _never("use --log-level: all processes have one level", "--log-level-http"),
    _never("use --cors-origins, once for each origin", "--allowed-origins"),
    _never("leave TLS to a reverse proxy", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs"),
    _never("let the reverse proxy strip the prefix", "--root-path", "--fastapi-root-path"),
    _never("a request gives chat_template_kwargs", "--default-chat-template-kwargs"),
    _never("values of config.json are taken as they are", "--hf-overrides", "--json-model-override-args"),
    _never(ONE_GPU, "--dist-init-addr", "--master-addr"),
)

OTHERS = {name: flag for flag in OTHER_FLAGS for name in flag.names}


def _names() -> dict[str, tuple[str, bool]]:
    found = {flag: (name, False) for name, flags in ALIASES.items() for flag in flags}
    found |= {flag: (name, True) for name, flags in NEGATIONS.items() for flag in flags}
    return found | {flag_of(name): (name, False) for name in SETTINGS}


NAMES = _names()
"""Every flag that is a name of a setting, also of a rare one: the setting, and whether the flag turns it off."""


def meaning_of(flag: str, value: str, origin: str, page_size: int) -> dict[str, str]:
    """Return the settings that a flag of OTHERS with that value gives, as text. Raises ConfigError."""
    other = OTHERS[flag]
    if value in other.meanings:
        return dict(other.meanings[value])
    if not other.otherwise:
        raise ConfigError(f"{origin}: {other.line}")
    if other.is_in_pages and value.isdecimal():
        return {other.otherwise: str(int(value) * page_size)}
    return {other.otherwise: value}
