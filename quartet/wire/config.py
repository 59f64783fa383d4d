"""Configuration: made once by the command line, validated there, handed to every process, never changed.

Each setting is one field: its default, bounds and help are written here and nowhere else; the flags, the environment
variables and the error messages are derived from them (quartet.settings). What is learnt later, such as the page
count, is a frame.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from quartet.wire.monitoring import MonitoringConfig
from quartet.wire.section import Section

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures, as config.json names them, that the model worker can run."""
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


POLICIES = (
    "fcfs",
    "lpm",
    "lpm-aging",
    "hrrn",
    "dfs-weight",
    "dfs-weight-tutorial",
    "lof",
    "random",
    "routing-key",
    "shortest-prefill-first",
)
"""Names of --schedule-policy, beside `multi:` with a comma-separated list of MULTI_LEVELS."""
MULTI_LEVELS = ("priority", "lpm", "lof", "fcfs")


class SchedulerConfig(Section, frozen=True):
    """Scheduling. Names are SGLang's where SGLang has one.

    The fields in quartet.settings.RARE have no flag of their own; `--scheduler-set name=value` sets them.
    """

    schedule_policy: Annotated[
        str, Meta(description=f"order of the waiting queue: {', '.join(POLICIES)}, or multi:LEVELS")
    ] = "fcfs"
    schedule_conservativeness: Annotated[float, Meta(ge=0, description="multiplies the initial new-token ratio")] = 1.0
    init_new_token_ratio: Annotated[
        float, Meta(gt=0, le=1, description="share of the remaining output reserved at first")
    ] = 0.7
    min_new_token_ratio_factor: Annotated[float, Meta(ge=0, le=1, description="floor of the ratio, as a factor")] = 0.14
    new_token_ratio_decay_steps: Annotated[int, Meta(ge=1, description="decode steps from initial to floor")] = 600
    new_token_ratio_decay: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="fall of the ratio in each decode step; default: from the decay steps"),
    ] = None
    retract_decode_steps: Annotated[int, Meta(ge=0, description="steps to make room for when retracting")] = 20
    clip_max_new_tokens_estimation: Annotated[
        int, Meta(ge=1, description="clip on the estimate of remaining output")
    ] = 4096
    max_prefill_tokens: Annotated[int, Meta(ge=1, description="input budget of one prefill pass")] = 16384
    chunked_prefill_size: Annotated[
        int, Meta(ge=-1, description="tokens of one prefill step; -1: no chunking; 0: chosen by device memory")
    ] = 0
    enable_mixed_chunk: Annotated[bool, Meta(description="decode rows join prefill steps")] = False
    max_running_requests: Annotated[
        int, Meta(ge=0, description="requests that run at once; 0: chosen by KV capacity")
    ] = 0
    max_queued_requests: Annotated[int, Meta(ge=0, description="waiting requests; beyond it new ones get 503")] = 2048
    prefill_max_requests: Annotated[int, Meta(ge=0, description="requests in one prefill pass; 0: no limit")] = 0
    enable_priority_scheduling: Annotated[bool, Meta(description="priorities come first, and preempt")] = False
    schedule_low_priority_values_first: Annotated[bool, Meta(description="small numbers are urgent")] = False
    default_priority_value: Annotated[
        int | None, Meta(description="priority of requests that name none; default: the least urgent")
    ] = None
    abort_on_priority_when_disabled: Annotated[
        bool, Meta(description="refuse requests with a priority while priority scheduling is off")
    ] = False
    disable_priority_preemption: Annotated[bool, Meta(description="order by priority, but never preempt")] = False
    priority_scheduling_preemption_threshold: Annotated[
        int, Meta(ge=0, description="a running request is preempted only for one more urgent by more than this")
    ] = 10
    preempt_accounting: Annotated[Literal["accurate", "compat"], Meta(description="what a preemption victim gives")] = (
        "accurate"
    )
    retraction_policy: Annotated[
        Literal["auto", "length", "priority"],
        Meta(description="whom to retract first; auto: by priority if on"),
    ] = "auto"
    radix_eviction_policy: Annotated[
        Literal["lru", "lfu", "fifo", "mru", "filo", "priority", "slru"],
        Meta(description="which cached prefixes are evicted first"),
    ] = "lru"
    cache_priority_isolation: Annotated[
        bool, Meta(description="a request evicts no cached prefix of a more urgent one")
    ] = False
    disable_radix_cache: Annotated[bool, Meta(description="share no prefixes")] = False
    step_order: Annotated[
        Literal["prefill_first", "decode_first", "slack"], Meta(description="what a step takes first")
    ] = "prefill_first"
    tbt_target_ms: Annotated[
        float,
        Meta(
            ge=0, description="longest time between tokens in milliseconds, by step order decode_first or slack; 0: off"
        ),
    ] = 0.0
    prefill_decode_interval: Annotated[int, Meta(ge=0, description="decode steps after each prefill step")] = 0
    prefill_decode_interval_min_bs: Annotated[
        int, Meta(ge=0, description="running requests from which the interval counts")
    ] = 0
    min_free_slots_delay: Annotated[
        int, Meta(ge=0, description="free slots before a prefill may start while others decode; 0: off")
    ] = 0
    in_batch_check_threshold: Annotated[
        int, Meta(ge=-1, description="cached tokens up to which in-batch sharing is looked for; -1: off")
    ] = 32
    in_batch_deprioritize_threshold: Annotated[
        int, Meta(ge=0, description="tokens shared with an earlier waiting request that put one off")
    ] = 32
    prefix_match_queue_max: Annotated[
        int, Meta(ge=0, description="waiting requests that cache-aware policies match and order")
    ] = 128
    prefix_match_overflow: Annotated[
        Literal["first", "fcfs"], Meta(description="beyond that: order the first ones, or fall back to fcfs")
    ] = "first"
    aging_share: Annotated[float, Meta(gt=0, le=1, description="share of work lpm-aging does for the oldest")] = 0.08
    reservation: Annotated[
        Literal["ratio", "blocks", "full"],
        Meta(description="output reserved at admission: by ratio, in blocks, or all of it"),
    ] = "ratio"
    reserve_basis: Annotated[
        Literal["remaining", "full"], Meta(description="what the ratio multiplies in block mode")
    ] = "remaining"
    req_waiting_timeout: Annotated[
        float, Meta(description="seconds a request may wait; 0 or less: without limit")
    ] = -1.0
    req_running_timeout: Annotated[
        float, Meta(description="seconds a request may run; 0 or less: without limit")
    ] = -1.0
    stream_interval: Annotated[int, Meta(ge=1, description="output tokens from one flush to the next")] = 1
    allow_auto_truncate: Annotated[bool, Meta(description="cut prompts that are too long instead of refusing them")] = (
        False
    )
    test_retract: Annotated[bool, Meta(description="retract every third step (tests)")] = False
    test_retract_no_prefill_bs: Annotated[
        int, Meta(ge=0, description="no prefill above this batch size; 0: off (tests)")
    ] = 0
    random_seed: Annotated[int, Meta(description="seed of policy random and of drawn request seeds")] = 0


class WorkerConfig(Section, frozen=True):
    """The model worker."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="where the model runs; auto: cuda if there is one, else cpu")
    ] = "auto"
    attention_backend: Annotated[
        Literal["auto", "torch", "triton"],
        Meta(description="code of attention; auto: triton on cuda, torch on the cpu"),
    ] = "auto"
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
