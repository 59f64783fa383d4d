"""A toy model over a small tokenizer."""

from collections.abc import Callable
from pathlib import Path

from quartet.wire.config import ResolvedModel
from tokenizer_proc.core import TokenizerCore

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
VOCAB_SIZE = 265
MakeCore = Callable[..., TokenizerCore]


def resolved(folder: Path, **more: object) -> ResolvedModel:
    """Return a model over the tokenizer in `folder`."""
    fields = {"vocab_size": VOCAB_SIZE, "context_length": 64, "chat_template": TEMPLATE, **more}
    return ResolvedModel(folder=str(folder), name="toy", architecture="LlamaForCausalLM", eos_token_ids=(), **fields)
