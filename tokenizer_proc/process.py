"""The tokenizer process: loads tokenizer and chat template, then serves its core in a thread."""

import contextlib
import logging
import os

from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.runtime.context import Context
from quartet.runtime.shell import Shell
from quartet.wire.config import Config
from tokenizer_proc.chat_template import ChatTemplate
from tokenizer_proc.core import TokenizerCore
from tokenizer_proc.grammar_process import GrammarProcess
from tokenizer_proc.grammars import LocalGrammars
from tokenizer_proc.job_thread import JobThread
from tokenizer_proc.memory_limit import limit_memory
from tokenizer_proc.render_process import RenderProcess
from tokenizer_proc.renderer import Renderer
from tokenizer_proc.tokenizer import TextEncoder
from tokenizer_proc.verdicts import Compiler, Verdicts

log = logging.getLogger(__name__)

_SPARE_MEMORY_BYTES = 4 << 30


def load_core(config: Config, renderer: Renderer | None = None, compiler: Compiler | None = None) -> TokenizerCore:
    """Return the core with tokenizer and template loaded; raises ModelError if either is missing or damaged.

    `renderer` is where the template is rendered, `compiler` where grammars are compiled; by default in this process.
    """
    # Jobs come one at a time; the library's own threads would only add memory.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoder = TextEncoder(tokenizer_folder(config))
    template = ChatTemplate(config.require_model().chat_template, encoder.names, renderer)
    return TokenizerCore(config, encoder, template, Verdicts(compiler or LocalGrammars(config)))


async def main(context: Context) -> None:
    """Serve until a drain is over. Raises ModelError for a tokenizer or template that is missing or damaged."""
    has_template = context.config.require_model().chat_template is not None
    with contextlib.ExitStack() as closers:
        renderer = None
        if has_template:
            # Started first, it imports while the tokenizer loads.
            renderer = closers.enter_context(contextlib.closing(RenderProcess()))
        _limit_memory()
        compiler = closers.enter_context(contextlib.closing(GrammarProcess(context.config)))
        core = load_core(context.config, renderer, compiler)
        jobs = closers.enter_context(contextlib.closing(JobThread(context, core)))
        await Shell(context, jobs).serve({"chat": "yes" if has_template else "no"})
        if not jobs.is_idle():
            log.warning("%d jobs were not answered before the end", jobs.metrics().gauges["tokenizer_pending_jobs"])


def _limit_memory() -> None:
    """Bound the address space, so that a prompt that explodes ends in MemoryError and not in swap."""
    try:
        limit_memory(_SPARE_MEMORY_BYTES)
    except (OSError, ValueError) as error:
        log.warning("the memory of the tokenizer is not bounded: %s", error)
