"""Record what transformers makes of the demo model: greedy tokens in float32 on the CPU, as a yardstick.

    OMP_NUM_THREADS=1 .venv-oracle/bin/python tests/golden/make_oracle.py PATH/TO/SmolLM2-135M-Instruct.Q4_1.gguf

Runs in its own environment (requirements/oracle.txt) and writes smollm2_oracle.json beside itself. Never imported by
the engine or its tests.
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch
from greedy import continue_greedily
from prompts import PROMPTS, Prompt
from transformers import AutoModelForCausalLM, AutoTokenizer

_NEW_TOKENS = 64
_TARGET = Path(__file__).parent / "smollm2_oracle.json"


def main() -> None:
    """Load, continue every prompt, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    gguf = parser.parse_args().gguf
    source = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source).eval()
    eos = tokenizer.eos_token_id
    records = []
    for prompt in PROMPTS:
        text = _render(prompt, tokenizer)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        output = continue_greedily(model, ids, _NEW_TOKENS)
        eos_at = output.ids.index(eos) if eos in output.ids else None
        records.append(
            {
                "name": prompt.name,
                "messages": [{"role": role, "content": content} for role, content in prompt.messages] or None,
                "text": text,
                "prompt_ids": ids,
                "output_ids": output.ids,
                "margins": output.margins,
                "eos_at": eos_at,
            }
        )
        print(f"{prompt.name}: {len(ids)} ids, smallest margin {min(output.margins)}, {tokenizer.decode(output.ids)!r}")
    head = {
        "model": gguf.name,
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "dtype": "float32",
        "eos_token_id": eos,
        "versions": {name: version(name) for name in ("transformers", "torch", "gguf")},
    }
    _write(head, records)


def _render(prompt: Prompt, tokenizer) -> str:
    if not prompt.messages:
        return prompt.text
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _write(head: dict, records: list[dict]) -> None:
    """One record a line, so that a change shows as a change of its lines."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records)
    opening = json.dumps(head, separators=(",", ":"))[:-1]
    _TARGET.write_text(f'{opening},"prompts":[\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
