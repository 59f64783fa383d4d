"""Record the log-probabilities that transformers gives the prompts of smollm2_oracle.json, in float32 on the CPU.

    OMP_NUM_THREADS=1 .venv-oracle/bin/python tests/golden/make_logprobs_oracle.py PATH/TO/SmolLM2-135M.Q4_1.gguf

Runs in its own environment (requirements/oracle.txt) and writes smollm2_logprobs.json beside itself. Never imported by
the engine or its tests.
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

_FOLDER = Path(__file__).parent
_DIGITS = 5


@torch.inference_mode()
def main() -> None:
    """Load, score every prompt of two ids or more, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    gguf = parser.parse_args().gguf
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, gguf_file=gguf.name).eval()
    records = []
    for prompt in json.loads((_FOLDER / "smollm2_oracle.json").read_text(encoding="utf-8"))["prompts"]:
        ids = torch.tensor(prompt["prompt_ids"])
        if len(ids) < 2:
            continue
        logprobs = model(input_ids=ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
        own = logprobs.gather(1, ids[1:, None])[:, 0]
        ranks = (logprobs > own[:, None]).sum(1) + 1
        values = [round(value, _DIGITS) for value in own.tolist()]
        records.append({"name": prompt["name"], "logprobs": values, "ranks": ranks.tolist()})
        print(f"{prompt['name']}: {len(ids)} ids, {own.sum():.3f} nats")
    head = {
        "model": gguf.name,
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "dtype": "float32",
        "versions": {name: version(name) for name in ("transformers", "torch", "gguf")},
    }
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
    opening = json.dumps(head, separators=(",", ":"))[:-1]
    target = _FOLDER / "smollm2_logprobs.json"
    target.write_text(f'{opening},"prompts":[\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
