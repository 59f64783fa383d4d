"""Record what transformers makes of Gemma 3 270M: greedy tokens in float32 on the CPU, prompts beyond its window too.

    OMP_NUM_THREADS=1 .venv-oracle/bin/python tests/golden/make_gemma3_oracle.py PATH/TO/gemma-3-270m-q4_k_m.gguf

As make_oracle.py, whose file it writes for another model. The attention is the plain one, in eager mode.
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch
from greedy import continue_greedily
from prompts import BASE_PROMPTS
from transformers import AutoModelForCausalLM, AutoTokenizer

_NEW_TOKENS = 24
_TARGET = Path(__file__).parent / "gemma3_oracle.json"


def main() -> None:
    """Load, continue every prompt, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    gguf = parser.parse_args().gguf
    source = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, attn_implementation="eager", **source
    ).eval()
    lines = []
    for prompt in BASE_PROMPTS:
        ids = tokenizer(prompt.text)["input_ids"]
        ids = ids[: prompt.num_tokens or len(ids)]
        output = continue_greedily(model, ids, _NEW_TOKENS)
        record = {"name": prompt.name, "text": prompt.text, "prompt_ids": ids, "output_ids": output.ids}
        lines.append(json.dumps({**record, "margins": output.margins}, ensure_ascii=False, separators=(",", ":")))
        print(f"{prompt.name}: {len(ids)} ids, smallest margin {min(output.margins)}, {tokenizer.decode(output.ids)!r}")
    head = {"model": gguf.name, "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(), "dtype": "float32"}
    head["versions"] = {name: version(name) for name in ("transformers", "torch", "gguf")}
    opening = json.dumps(head, separators=(",", ":"))[:-1]
    _TARGET.write_text(f'{opening},"prompts":[\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
