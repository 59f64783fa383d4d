"""lm-eval, its log-likelihoods with a task of our own over local data: they are those of transformers on one GGUF."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import ARGUMENTS, KEY, MODEL, check, main
from tokenizers import Tokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NATS = 0.02
"""By which a token may differ."""
NAMES = (
    "few_words",
    "counting",
    "scripts",
    "emoji",
    "code_python",
    "code_json",
    "harbour_end",
    "library_late",
    "library_hours",
)
TASK = {
    "task": "texts",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "loglikelihood",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{continuation}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}


def texts() -> list[dict[str, object]]:
    """Return texts, each cut in two, with what transformers says of the second part's tokens."""
    tokenizer = Tokenizer.from_file(f"{ARGUMENTS.folder}/tokenizer.json")
    oracle = {row["name"]: row for row in read("smollm2_oracle.json")}
    scores = {row["name"]: row for row in read("smollm2_logprobs.json")}
    rows = []
    for name in NAMES:
        text, ids = oracle[name]["text"], oracle[name]["prompt_ids"]
        cut = text.rindex(" ", 1, len(text) * 2 // 3)
        context = tokenizer.encode(text[:cut], add_special_tokens=False).ids
        assert ids[: len(context)] == context, f"{name} cannot be cut there"
        wanted = scores[name]["logprobs"][len(context) - 1 :]
        is_greedy = all(rank == 1 for rank in scores[name]["ranks"][len(context) - 1 :])
        rows.append({"context": text[:cut], "continuation": text[cut:], "wanted": wanted, "is_greedy": is_greedy})
    return rows


def read(name: str) -> list[dict[str, object]]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))["prompts"]


def evaluate(url: str, rows: list[dict[str, object]], *arguments: str) -> list[tuple[float, bool]]:
    """Run lm-eval on the rows; returns log-likelihood and `is_greedy` of each."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "texts.jsonl")
        data.write_text(
            "\n".join(json.dumps({"context": r["context"], "continuation": r["continuation"]}) for r in rows)
        )
        # JSON is YAML.
        Path(folder, "texts.yaml").write_text(
            json.dumps({**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}})
        )
        model = (
            f"model={MODEL},base_url={url}/v1/completions,tokenizer={ARGUMENTS.folder},tokenizer_backend=huggingface"
        )
        command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", model, *arguments]
        command += ["--tasks", "texts", "--include_path", folder, "--output_path", f"{folder}/out", "--log_samples"]
        variables = {**os.environ, "OPENAI_API_KEY": KEY, "HF_HOME": folder, "HF_DATASETS_OFFLINE": "1"}
        finished = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=88)
        assert finished.returncode == 0, finished.stderr[-1500:]
        (samples,) = Path(folder, "out").rglob("samples_texts_*.jsonl")
        found = [json.loads(line) for line in samples.read_text().splitlines()]
        by_number = sorted(found, key=lambda sample: sample["doc_id"])
        return [_answer(sample["resps"][0][0]) for sample in by_number]


def _answer(response: list[object]) -> tuple[float, bool]:
    return float(str(response[0])), str(response[1]) == "True"


def compare(url: str, *arguments: str) -> None:
    rows = texts()
    found = evaluate(url, rows, *arguments)
    assert len(found) == len(rows)
    worst = 0.0
    for row, (logprob, is_greedy) in zip(rows, found, strict=True):
        wanted: list[float] = row["wanted"]
        worst = max(worst, abs(logprob - sum(wanted)) / len(wanted))
        assert is_greedy == row["is_greedy"], row["context"]
    tokens = sum(len(row["wanted"]) for row in rows)
    print(f"       {tokens} tokens of {len(rows)} texts: at most {worst:.6f} nats a token from transformers")
    assert worst < NATS, f"{worst} nats a token"


@check("log-likelihoods are those of transformers", on="model")
def likelihoods(url: str) -> None:
    # Four prompts of ids in a request, and one in the last.
    compare(url, "--batch_size", "4")


if __name__ == "__main__":
    main("lm-eval", "lm_eval", "transformers")
