"""Configuration: made once by the command line, validated there, handed to every process, never changed.

Each setting is one field: its default, bounds and help stand here and nowhere else; the flags, the environment twins
and the error messages are derived from them (quartet.options). What is learnt later, such as the page count, is a
frame.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the sections; a wire type too."""


class ResolvedModel(_Section, frozen=True):
    """What start-up learnt about the model from its folder; see quartet.checkpoint.resolve.

    `folder` is in Hugging Face layout (config.json, safetensors, tokenizer.json), also for a model that came as GGUF.
    """

    folder: str
    name: str
    architecture: str
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    chat_template: str | None = None
    default_sampling: dict[str, float] = {}


class ModelConfig(_Section, frozen=True):
    """Which model, and how to load it."""

    model_path: Annotated[str, Meta(description="folder, .gguf file, hub id, or smollm2 (bundled by a package)")] = (
        "smollm2"
    )
    served_model_name: Annotated[str, Meta(description="name clients use; default: the model's base name")] = ""
    load_format: Annotated[
        Literal["auto", "dummy"], Meta(description="auto reads weights; dummy makes random ones from config.json")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="auto: bfloat16 where the device computes it natively, else float32"),
    ] = "auto"
    context_length: Annotated[int, Meta(ge=0, description="0: the model's own limit")] = 0
    revision: Annotated[str, Meta(description="branch, tag or commit of a hub model")] = ""
    tokenizer_path: Annotated[str, Meta(description="folder with tokenizer.json; default: the model's")] = ""
    chat_template: Annotated[str, Meta(description="file with a jinja2 chat template; default: the model's")] = ""


class ServerConfig(_Section, frozen=True):
    """The HTTP endpoint."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 picks a free one")] = 30000
    api_key: Annotated[tuple[str, ...], Meta(description="key clients must send; repeatable; none: open")] = ()
    insecure: Annotated[bool, Meta(description="allow a reachable host without a key")] = False
    max_body_bytes: Annotated[int, Meta(ge=1024, description="largest request body")] = 16 << 20
    api_procs: Annotated[int, Meta(ge=1, le=64, description="api processes")] = 1
    tokenizer_procs: Annotated[int, Meta(ge=1, le=64, description="tokenizer processes")] = 1
    detok_procs: Annotated[int, Meta(ge=1, le=64, description="detokenizer processes")] = 1
    shutdown_timeout: Annotated[float, Meta(ge=0, description="seconds that SIGTERM waits for open streams")] = 30.0
    restart_limit: Annotated[
        int, Meta(ge=0, description="unexplained deaths of a role within 60 s before giving up")
    ] = 5
    hang_timeout: Annotated[float, Meta(gt=0, description="seconds without a heartbeat before a process is killed")] = (
        5.0
    )
    step_timeout: Annotated[float, Meta(gt=0, description="seconds a worker step may take before it is a hang")] = 60.0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="verbosity")] = "info"
    run_dir: Annotated[
        str, Meta(description="where the private run directory is made; default: XDG_RUNTIME_DIR or tmp")
    ] = ""


class SchedulerConfig(_Section, frozen=True):
    """Scheduling. Names are SGLang's where SGLang has one; rule ids are those of docs/scheduling-rules.md."""

    schedule_policy: Annotated[Literal["fcfs"], Meta(description="order of the waiting queue")] = "fcfs"
    schedule_conservativeness: Annotated[
        float, Meta(ge=0, description="multiplies the initial new-token ratio (RAT-1)")
    ] = 1.0
    init_new_token_ratio: Annotated[
        float, Meta(gt=0, le=1, description="share of the remaining output reserved (RAT-1)")
    ] = 0.7
    min_new_token_ratio_factor: Annotated[float, Meta(ge=0, le=1, description="floor of the ratio, as a factor")] = 0.14
    new_token_ratio_decay_steps: Annotated[int, Meta(ge=1, description="decode steps from initial to floor")] = 600
    retract_decode_steps: Annotated[int, Meta(ge=0, description="steps to make room for when retracting (RET-5)")] = 20
    clip_max_new_tokens_estimation: Annotated[
        int, Meta(ge=1, description="clip on the estimate of remaining output")
    ] = 4096
    max_prefill_tokens: Annotated[int, Meta(ge=1, description="input budget of one prefill pass")] = 16384
    chunked_prefill_size: Annotated[
        int, Meta(ge=-1, description="tokens of one prefill step; -1: no chunking; 0: chosen by device memory")
    ] = 0
    max_running_requests: Annotated[
        int, Meta(ge=0, description="requests that run at once; 0: chosen by KV capacity")
    ] = 0
    max_queued_requests: Annotated[int, Meta(ge=0, description="waiting requests before new ones get 503")] = 2048
    prefill_max_requests: Annotated[int, Meta(ge=0, description="requests in one prefill pass; 0: no limit")] = 0
    disable_radix_cache: Annotated[bool, Meta(description="share no prefixes")] = False
    allow_auto_truncate: Annotated[bool, Meta(description="cut prompts that are too long instead of refusing them")] = (
        False
    )
    random_seed: Annotated[int, Meta(description="seed of drawn request seeds")] = 0


class WorkerConfig(_Section, frozen=True):
    """The model worker."""

    device: Annotated[Literal["auto", "cpu", "cuda"], Meta(description="auto: cuda if there is one, else cpu")] = "auto"
    attention_backend: Annotated[
        Literal["auto", "torch", "triton"], Meta(description="auto: triton on cuda, torch on the cpu")
    ] = "auto"
    page_size: Annotated[int, Meta(ge=1, le=128, description="tokens per KV page; triton: 16, 32, 64 or 128")] = 16
    mem_fraction_static: Annotated[
        float, Meta(gt=0, lt=1, description="share of device memory for weights and KV (cuda)")
    ] = 0.88
    max_total_tokens: Annotated[int, Meta(ge=0, description="KV capacity in tokens; 0: from free memory")] = 0
    cpu_threads: Annotated[int, Meta(ge=0, description="torch threads on the cpu; 0: 1")] = 0
    simulated_worker: Annotated[bool, Meta(description="answer with a hash instead of a model (tests, benchmarks)")] = (
        False
    )
    simulated_step_ms: Annotated[float, Meta(ge=0, description="time a simulated step takes")] = 0.0


class Config(_Section, frozen=True):
    """Everything a launch is told."""

    model: ModelConfig = ModelConfig()
    server: ServerConfig = ServerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    worker: WorkerConfig = WorkerConfig()
    resolved: ResolvedModel | None = None

    def require_model(self) -> ResolvedModel:
        """Return what start-up learnt about the model; it is there in every child."""
        if self.resolved is None:
            raise ValueError("the model has not been resolved")
        return self.resolved
