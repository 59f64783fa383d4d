"""A serving engine for large language models: `quartet serve`, or in one process `from quartet import LLM`."""

import importlib
from typing import TYPE_CHECKING, Any

from quartet.version import __version__

if TYPE_CHECKING:
    from quartet.answer import Answer, SamplingParams
    from quartet.llm import LLM

__all__ = ["LLM", "Answer", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the offline engine when it is first used: every process imports this package, and few load torch."""
    if name in __all__:
        return getattr(importlib.import_module("quartet.llm"), name)
    raise AttributeError(f"module 'quartet' has no attribute {name!r}")
