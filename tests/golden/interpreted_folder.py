"""Run as a program under TRITON_INTERPRET=1: one tiny model on the Triton operations against its oracle.

A separate process, because the interpreter is enabled for a whole process. Args: the folder, and one with a tokenizer.
"""

import sys
from pathlib import Path

from tests.golden.oracles import check_equal, load_for_launch
from tests.support.local_engine import LocalEngine, make_config

_MOST_TOKENS = 33
_NEW_TOKENS = 4


def main(folder: Path, tokenizer: Path) -> None:
    """Check the shorter prompts together, in chunks beside decode rows; raises AssertionError for a wrong id."""
    oracles, context_length = load_for_launch(folder)
    oracles = [one for one in oracles if len(one.prompt_ids) <= _MOST_TOKENS]
    settings = {"max_total_tokens": 512, "page_size": 16, "attention_backend": "triton"}
    scheduler = {"chunked_prefill_size": 16, "max_running_requests": len(oracles)}
    config = make_config(folder, tokenizer=tokenizer, scheduler=scheduler, context_length=context_length, **settings)
    engine = LocalEngine(config)
    check_equal(oracles, engine.generate([one.prompt_ids for one in oracles], _NEW_TOKENS))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
