"""Does the simulator tell what the live engine does? Public traces on the real processes and simulated, side by side.

    python -m benchmarks.simulation.live_agreement --out DIR --azure FILE --mooncake FILE [--legs NAME ...]
                                                   [--minutes 5] [--threads 4]
    python -m benchmarks.simulation.live_agreement --out DIR

A leg is a trace, a worker and a policy. All legs of a call run at once, each on an engine of its own, so there must be
a core for each of them and --threads for a leg of SmolLM2, whose step costs are measured on the engine before the trace
(random weights). Each writes DIR/NAME.json; tables and summary.json are of all legs in DIR, and the second form only
makes these.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.model_configs import FOLDER, TOKENIZER, dimensions
from benchmarks.report import describe_host
from benchmarks.serving.full_vocabulary import write_tokenizer

SMOLLM2, SIMULATED = "smollm2-135m", "llama-3.1-8b"
LONG_CONTEXT, CHUNK = 131_072, 2048
POLICIES = ("fcfs", "lpm", "lpm-aging", "hrrn", "shortest-prefill-first")
POLICY_STEP_MS, POLICY_LOAD, POLICY_ROOM = 30, 1.1, 4_000_000
LOAD = 0.8
TIE = 0.05
"""Policies whose p99 differs by no more than this share, live and simulated, are in the same order."""
FIGURES = (("ttft_s", "p50", 0.05), ("ttft_s", "p99", 0.10), ("tpot_s", "p50", 0.05), ("tpot_s", "p99", 0.10))
"""What is compared, and how far apart live and simulated may be."""


class Leg(NamedTuple):
    """A trace (azure or mooncake) on an engine; `flags` are of `quartet serve`, `model` a folder below models."""

    name: str
    trace: str
    model: str
    load: float
    flags: tuple[str, ...]


def legs(threads: int) -> list[Leg]:
    """Return every leg. Azure's outputs decide what slots can take; Mooncake's prompts take many steps each."""
    found = []
    for step_ms, slots in ((10, 16), (30, 32), (60, 32)):
        simulated = ("--simulated-worker", "--simulated-step-ms", str(step_ms), "--max-running-requests", str(slots))
        found.append(Leg(f"azure-{step_ms}ms", "azure", SIMULATED, LOAD, (*simulated, *_room(400_000))))
        long = (*simulated, *_room(800_000), "--chunked-prefill-size", str(CHUNK))
        found.append(Leg(f"mooncake-{step_ms}ms", "mooncake", SIMULATED, LOAD, long))
        if step_ms == POLICY_STEP_MS:
            for policy in POLICIES:
                flags = (
                    *simulated,
                    *_room(POLICY_ROOM),
                    "--chunked-prefill-size",
                    str(CHUNK),
                    "--schedule-policy",
                    policy,
                )
                found.append(Leg(f"policy-{policy}", "mooncake", SIMULATED, POLICY_LOAD, flags))
    cpu = (
        "--device",
        "cpu",
        "--cpu-threads",
        str(threads),
        "--max-running-requests",
        "16",
        "--max-total-tokens",
        "65536",
    )
    return [*found, *(Leg(f"{trace}-smollm2", trace, SMOLLM2, LOAD, cpu) for trace in ("azure", "mooncake"))]


def _room(kv_tokens: int) -> tuple[str, ...]:
    return "--max-total-tokens", str(kv_tokens), "--context-length", str(LONG_CONTEXT)


def model_flags(model: str, out: Path) -> list[str]:
    """Return the flags for random weights and a tokenizer with text for every id; an id without text makes no event."""
    folder = out / f"tokenizer-{model}"
    if not folder.exists():
        folder.mkdir()
        write_tokenizer(TOKENIZER, dimensions(model).vocab, folder)
    return ["--load-format", "dummy", "--tokenizer-path", str(folder)]


def started(leg: Leg, trace: str, minutes: float, out: Path) -> "subprocess.Popen[bytes]":
    """Start a leg; what it prints goes to DIR/NAME.out."""
    command = [sys.executable, "-m", "benchmarks.serving.live_trace", trace, "--compare", "--load", str(leg.load)]
    command += ["--minutes", str(minutes), "--model", str(FOLDER / leg.model), *model_flags(leg.model, out)]
    command += leg.flags
    if leg.model == SMOLLM2:
        command.append("--fit")
    with (out / f"{leg.name}.out").open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def collect(leg: Leg, out: Path) -> bool:
    """Write DIR/NAME.json from what a leg printed; returns whether it came to its end."""
    found: dict[str, Any] = {"name": leg.name, "load": leg.load}
    for line in (out / f"{leg.name}.out").read_text(errors="replace").splitlines():
        found |= json.loads(line) if line.startswith(('{"live"', '{"simulated"')) else {}
    if "simulated" not in found:
        print(f"{leg.name} did not come to its end: see {leg.name}.out", file=sys.stderr)
        return False
    for side in ("live", "simulated"):
        del found[side]["admission_order"]
    (out / f"{leg.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / f"{leg.name}.out").unlink()
    return True


def tables(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return both tables as lines of Markdown: live over simulated, and the order of the policies."""
    lines = ["| leg | requests | " + " | ".join(f"{name[:4].upper()} {share}" for name, share, _ in FIGURES) + " |"]
    lines.append("|---|---|" + "---|" * len(FIGURES))
    for name, leg in sorted(found.items()):
        cells = []
        for figure, share, most in FIGURES:
            live, simulated = (leg[side][figure][share] for side in ("live", "simulated"))
            missed = "" if abs(live / simulated - 1) <= most else " **missed**"
            cells.append(f"{live:.4f} / {simulated:.4f} = {live / simulated:.3f}{missed}")
        lines.append(f"| {name} | {leg['live']['requests']} | " + " | ".join(cells) + " |")
    named = {name.removeprefix("policy-"): leg for name, leg in found.items() if name.startswith("policy-")}
    if len(named) > 1:
        same = [
            pair for pair in itertools.combinations(sorted(named), 2) if is_same_order(*(named[one] for one in pair))
        ]
        pairs = len(named) * (len(named) - 1) // 2
        lines += ["", f"Order of the policies by p99 time to first token: the same in {len(same)} of {pairs} pairs."]
    return lines


def is_same_order(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Say whether the p99 of two policies is in the same order live and simulated, or a tie in both."""
    apart = [one[side]["ttft_s"]["p99"] / other[side]["ttft_s"]["p99"] - 1 for side in ("live", "simulated")]
    return apart[0] * apart[1] > 0 or all(abs(each) <= TIE for each in apart)


def main(argv: Sequence[str]) -> int:
    """Run the legs and print the tables."""
    parser = argparse.ArgumentParser(description="the simulator against the live engine")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--azure", default="")
    parser.add_argument("--mooncake", default="")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=4)
    known = {leg.name: leg for leg in legs(4)}
    parser.add_argument("--legs", nargs="*", choices=known, help="default: all of the traces that are given")
    options = parser.parse_args(argv)
    traces = {"azure": options.azure, "mooncake": options.mooncake}
    wanted = [leg for leg in legs(options.threads) if traces[leg.trace] and leg.name in (options.legs or known)]
    options.out.mkdir(parents=True, exist_ok=True)
    is_whole = not wanted or run(wanted, traces, options)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(options.out.glob("*-*.json"))}
    lines = tables(results)
    print("\n".join(lines))
    summary = {**describe_host(), "cores": os.cpu_count(), "table": lines, "legs": results}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return 0 if is_whole else 1


def run(wanted: Sequence[Leg], traces: dict[str, str], options: argparse.Namespace) -> bool:
    """Run legs at once; returns whether all came to their end."""
    began = time.monotonic()
    running = [(leg, started(leg, traces[leg.trace], options.minutes, options.out)) for leg in wanted]
    for leg, process in running:
        process.wait()
        print(f"{time.monotonic() - began:.0f} s: {leg.name} has ended", file=sys.stderr, flush=True)
    ended = [collect(leg, options.out) for leg in wanted]
    return all(ended)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
