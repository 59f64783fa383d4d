"""The tokenizer process: loads tokenizer and chat template, then serves its core in a thread."""

import logging
import os
import resource
from pathlib import Path

from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.runtime.context import Context
from quartet.runtime.shell import Shell
from quartet.wire.config import Config
from tokenizer_proc.chat_template import ChatTemplate
from tokenizer_proc.core import TokenizerCore
from tokenizer_proc.job_thread import JobThread
from tokenizer_proc.tokenizer import TextEncoder

log = logging.getLogger(__name__)

_SPARE_MEMORY_BYTES = 4 << 30


def load_core(config: Config) -> TokenizerCore:
    """Return the core with tokenizer and template loaded; raises ModelError if either is missing or damaged."""
    # Jobs come one at a time; the library's own threads would only add memory.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoder = TextEncoder(tokenizer_folder(config))
    return TokenizerCore(config, encoder, ChatTemplate(config.require_model().chat_template, encoder.names))


async def main(context: Context) -> None:
    """Serve until a drain is over. Raises ModelError for a tokenizer or template that is missing or damaged."""
    # Loading renders the template, too.
    _limit_memory()
    core = load_core(context.config)
    jobs = JobThread(context, core)
    try:
        await Shell(context, jobs).serve({"chat": "yes" if context.config.require_model().chat_template else "no"})
        if not jobs.is_idle():
            log.warning("%d jobs were not answered before the end", jobs.metrics().gauges["tokenizer_pending_jobs"])
    finally:
        jobs.close()


def _limit_memory() -> None:
    """Bound the address space, so that a chat template that explodes ends in MemoryError and not in swap."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = used + _SPARE_MEMORY_BYTES
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (OSError, ValueError) as error:
        log.warning("the memory of chat templates is not bounded: %s", error)
