"""Configuration: made once by the command line, validated there, handed to every process, never changed.

Each setting is one field: its default, bounds and help are written here and nowhere else; the flags, the environment
variables and the error messages are derived from them (quartet.settings). What is learnt later, such as the page
count, is a frame.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from quartet.wire.monitoring import MonitoringConfig
from quartet.wire.scheduling import MULTI_LEVELS as MULTI_LEVELS
from quartet.wire.scheduling import POLICIES as POLICIES
from quartet.wire.scheduling import SchedulerConfig as SchedulerConfig
from quartet.wire.section import Section

TRITON_PAGE_SIZES = (16, 32, 64, 128)
"""Tokens per KV page that the triton kernels are written for."""
DEFAULT_SLOTS = 512
DEFAULT_SLOTS_CPU = 64
"""Most requests that run at once without --max-running-requests, on a GPU and on the CPU."""


class ResolvedModel(Section, frozen=True):
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
    default_sampling: dict[str, float] = msgspec.field(default_factory=dict)


class ModelConfig(Section, frozen=True):
    """Which model, and how to load it."""

    model_path: Annotated[str, Meta(description="folder, .gguf file, hub id, or smollm2 (bundled by a package)")] = (
        "smollm2"
    )
    served_model_name: Annotated[str, Meta(description="name clients use; default: the model's base name")] = ""
    load_format: Annotated[
        Literal["auto", "dummy"], Meta(description="where weights come from; auto: files, dummy: random numbers")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="type of the weights; auto: bfloat16 where native, on a CPU only if so stored, else float32"),
    ] = "auto"
    quantization: Annotated[
        Literal["auto", "fp8"],
        Meta(description="format of the linears' weights; auto: as the checkpoint says, fp8: made of it on loading"),
    ] = "auto"
    context_length: Annotated[int, Meta(ge=0, description="most tokens of a request; 0: the model's own limit")] = 0
    revision: Annotated[str, Meta(description="branch, tag or commit of a hub model")] = ""
    tokenizer_path: Annotated[str, Meta(description="folder with tokenizer.json; default: the model's")] = ""
    chat_template: Annotated[str, Meta(description="file with a jinja2 chat template; default: the model's")] = ""


class ServerConfig(Section, frozen=True):
    """The HTTP server, the number of processes, and the supervisor's limits."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 picks a free one")] = 30000
    api_key: Annotated[tuple[str, ...], Meta(description="key clients must send; repeatable; none: open")] = ()
    admin_api_key: Annotated[
        tuple[str, ...], Meta(description="key for /trace, /config and /flush_cache; none: those take any --api-key")
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(description="origin whose pages may read answers, or *; repeatable; none: no other origin"),
    ] = ()
    serve_version: Annotated[
        bool, Meta(description="serve GET /version, by which some routers take a server for vLLM")
    ] = False
    disable_ui: Annotated[bool, Meta(description="serve no page at / and no /ui routes")] = False
    demo: Annotated[bool, Meta(description="let the page at / kill processes, to show that streams go on")] = False
    insecure: Annotated[bool, Meta(description="allow a reachable host without a key")] = False
    first_token_timeout: Annotated[
        float, Meta(ge=0, description="seconds that a request may be without output before 408; 0: no limit")
    ] = 0.0
    tool_call_parser: Annotated[
        str, Meta(description="format of the model's tool calls; auto: as its chat template shows, none: no tools")
    ] = "auto"
    reasoning_parser: Annotated[
        str, Meta(description="format of the model's thinking; auto: as its chat template shows, none: it is content")
    ] = "auto"
    max_requests_per_key: Annotated[
        int, Meta(ge=0, description="requests of one API key in progress in an api process before 429; 0: no limit")
    ] = 0
    max_body_bytes: Annotated[int, Meta(ge=1024, description="largest request body")] = 16 << 20
    api_procs: Annotated[int, Meta(ge=1, le=64, description="api processes")] = 1
    tokenizer_procs: Annotated[
        int, Meta(ge=1, le=64, description="tokenizer processes; where there are 8 cores or more, 2 unless it is given")
    ] = 1
    detok_procs: Annotated[int, Meta(ge=1, le=64, description="detokenizer processes")] = 1
    standby: Annotated[
        bool, Meta(description="keep a second worker ready; the weights are in a process of their own")
    ] = False
    shutdown_timeout: Annotated[float, Meta(ge=0, description="seconds for open streams at SIGTERM")] = 30.0
    restart_limit: Annotated[
        int, Meta(ge=0, description="deaths of a process in a row, without a finished step or job, before giving up")
    ] = 5
    hang_timeout: Annotated[
        float, Meta(gt=0, description="seconds without a heartbeat before a stopped or busy process is killed")
    ] = 1.75
    step_timeout: Annotated[float, Meta(gt=0, description="seconds a worker step may take before it is a hang")] = 60.0
    record_trace: Annotated[
        str, Meta(description="file to which finished requests are written as a trace: lengths and hashed prefixes")
    ] = ""
    kv_events_config: Annotated[str, Meta(description="JSON: publish KV-cache events; keys as in vLLM")] = ""
    run_dir: Annotated[
        str,
        Meta(description="where the run directory is made; default: RUNTIME_DIRECTORY, XDG_RUNTIME_DIR or tmp"),
    ] = ""


class WorkerConfig(Section, frozen=True):
    """The model worker."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="where the model runs; auto: cuda if there is one, else cpu")
    ] = "auto"
    attention_backend: Annotated[
        Literal["auto", "torch", "triton"],
        Meta(description="code of attention; auto: triton on cuda, torch on the cpu"),
    ] = "auto"
    tp_size: Annotated[
        int, Meta(ge=1, le=64, description="GPUs that share the model; each has a process, as on a CPU")
    ] = 1
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8_e4m3"],
        Meta(description="type of the KV cache; auto: that of --dtype, fp8_e4m3: half the bytes of bfloat16, scale 1"),
    ] = "auto"
    deterministic: Annotated[
        bool, Meta(description="a request gives the same bytes in whatever batch, after whatever death; slower")
    ] = False
    page_size: Annotated[
        int,
        Meta(ge=1, le=128, description=f"tokens per KV page; triton: one of {', '.join(map(str, TRITON_PAGE_SIZES))}"),
    ] = 16
    mem_fraction_static: Annotated[
        float, Meta(gt=0, lt=1, description="share of memory for weights and KV; of a GPU")
    ] = 0.88
    max_total_tokens: Annotated[int, Meta(ge=0, description="KV capacity in tokens; 0: from free memory")] = 0
    cpu_threads: Annotated[int, Meta(ge=0, description="torch threads on the cpu; 0: 1")] = 0
    disable_cuda_graph: Annotated[bool, Meta(description="launch each kernel by itself; on a GPU")] = False
    cuda_graph_max_bs: Annotated[int, Meta(ge=1, description="largest decode batch that runs as a CUDA graph")] = 512
    simulated_worker: Annotated[bool, Meta(description="answer with a hash instead of a model (tests, benchmarks)")] = (
        False
    )
    simulated_step_ms: Annotated[float, Meta(ge=0, description="time a simulated step takes")] = 0.0
    simulated_script: Annotated[
        str, Meta(description="JSON file of what the simulated worker answers to prompts that contain a text")
    ] = ""


class ScriptedReply(Section, frozen=True):
    """What the simulated worker answers to a prompt that contains a text; see worker_proc.scripted."""

    contains: str
    reply: str


class Config(Section, frozen=True):
    """The whole configuration of a launch. `is_coloured`: the log goes to a terminal."""

    model: ModelConfig = ModelConfig()
    server: ServerConfig = ServerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    worker: WorkerConfig = WorkerConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    resolved: ResolvedModel | None = None
    script: tuple[ScriptedReply, ...] = ()
    is_coloured: bool = False

    def require_model(self) -> ResolvedModel:
        """Return the resolved model; every child has it."""
        if self.resolved is None:
            raise ValueError("the model has not been resolved")
        return self.resolved
