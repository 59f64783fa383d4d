"""What a server-sent event costs: all processes with a simulated worker, and a cheap client process.

    python -m benchmarks.serving.http_overhead [streams] [tokens per stream] [path] [seconds of X-Quartet-Resume]

Prints one JSON line: events per second as the client saw them, and CPU per event of each process.
"""

import json
import subprocess
import sys

from benchmarks.serving.cpu_time import cpu_seconds
from benchmarks.serving.served import get, served

WARM_UP_TOKENS = 32


def main(arguments: list[str]) -> int:
    """Run the server and the client; print the result."""
    streams, tokens = int((arguments or ["256"])[0]), int((arguments[1:] or ["500"])[0])
    path = (arguments[2:] or ["/v1/chat/completions"])[0]
    resume = (arguments[3:] or ["0"])[0]
    flags = ["--simulated-worker", "--max-running-requests", str(streams)]
    with served(*flags, "--max-total-tokens", str(streams * (tokens + 128))) as url:
        pids = {row["role"]: row["pid"] for row in json.loads(get(url + "/topology"))["processes"]}
        command = [sys.executable, "-m", "benchmarks.serving.sse_client", "--port", url.rpartition(":")[2]]
        command += ["--streams", str(streams), "--path", path, "--resume", resume]
        subprocess.run([*command, "--max-tokens", str(WARM_UP_TOKENS)], stdout=subprocess.DEVNULL, check=True)
        before = {role: cpu_seconds(pid) for role, pid in pids.items()}
        run = subprocess.run([*command, "--max-tokens", str(tokens)], stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(run.stdout.strip().splitlines()[-1])
        result["cpu_us_per_event"] = {
            role: round((cpu_seconds(pid) - before[role]) / result["events"] * 1e6, 2) for role, pid in pids.items()
        }
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
