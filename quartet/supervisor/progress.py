"""What the terminal shows of start-up and recovery: lines on standard error, the ready line on standard output."""

import time
from collections.abc import Sequence

from quartet.runtime.logs import json_line
from quartet.runtime.output import STDOUT, write_line
from quartet.wire.config import Config

Facts = dict[str, str | int | float]


class Progress:
    """Prints phases as they change. Quiet once ready, but for deaths and restarts.

    A line that cannot be written is lost. `opening` is shown once processes start."""

    def __init__(self, opening: Sequence[str] = (), is_json: bool = False) -> None:
        self._is_json = is_json
        self._started_s = time.monotonic()
        self._opening = opening
        self._shown: dict[str, str] = {}

    def phase(self, name: str, phase: str) -> None:
        """Show a process's phase if it has changed."""
        for line in self._opening:
            self.line(line)
        self._opening = ()
        if self._shown.get(name) != phase:
            self._shown[name] = phase
            self.line(f"{name}: {phase}")

    def line(self, text: str) -> None:
        """Show one line with the time since the start."""
        if self._is_json:
            seconds = round(time.monotonic() - self._started_s, 3)
            write_line(json_line(time.time(), "INFO", "supervisor", text, {"since_start_s": seconds}))
        else:
            write_line(self.stamp() + text)

    def stamp(self) -> str:
        """Return the time since the start as the beginning of a line."""
        return f"[{time.monotonic() - self._started_s:6.2f} s] "

    def ready(self, config: Config, url: str, facts: Facts) -> None:
        """Show the address, the model and its device, and a request to try."""
        model = config.require_model()
        seconds = time.monotonic() - self._started_s
        capacity = int(facts.get("kv_tokens", 0))
        sentence = (
            f"Quartet is ready at {url}/v1 after {seconds:.1f} s: model {model.name} "
            f"({facts.get('dtype', '?')} on {facts.get('device', '?')}, "
            f"{facts.get('attention', 'no')} attention), "
            f"KV cache {capacity} tokens, policy {config.scheduler.schedule_policy}, "
            f"tool calls {facts.get('tool_call_parser', '?')}, reasoning {facts.get('reasoning_parser', '?')}."
        )
        page = "" if config.server.disable_ui else f"In a browser: {url}/\n"
        phases = {name.removesuffix("_s"): value for name, value in facts.items() if name.endswith("_s")}
        if self._is_json:
            fields = {**facts, "url": url, "ready_s": round(seconds, 3)}
            write_line(json_line(time.time(), "INFO", "supervisor", sentence, fields), STDOUT)
            return
        if phases:
            sentence += (
                " Start of the worker: " + ", ".join(f"{one} {float(s):.1f} s" for one, s in phases.items()) + "."
            )
        write_line(
            f"{sentence}\n{page}Try: curl {url}/v1/chat/completions -H 'content-type: application/json' "
            f'-d \'{{"model": "{model.name}", "stream": true, '
            f'"messages": [{{"role": "user", "content": "Hello!"}}]}}\'',
            STDOUT,
        )
