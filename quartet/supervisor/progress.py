"""What the terminal shows of start-up and recovery: lines on standard error, the ready line on standard output."""

import time

from quartet.runtime.output import STDOUT, write_line
from quartet.wire.config import Config

Facts = dict[str, str | int | float]


class Progress:
    """Prints phases as they change. Quiet once ready, but for deaths and restarts.

    A line that cannot be written is lost. `memory` is the plan, shown once processes start."""

    def __init__(self, memory: str = "") -> None:
        self._started_s = time.monotonic()
        self._memory = memory
        self._shown: dict[str, str] = {}

    def phase(self, name: str, phase: str) -> None:
        """Show a process's phase if it has changed."""
        if self._memory:
            self.line(self._memory)
            self._memory = ""
        if self._shown.get(name) != phase:
            self._shown[name] = phase
            self.line(f"{name}: {phase}")

    def line(self, text: str) -> None:
        """Show one line with the time since the start."""
        write_line(self.stamp() + text)

    def stamp(self) -> str:
        """Return the time since the start as the beginning of a line."""
        return f"[{time.monotonic() - self._started_s:6.2f} s] "

    def ready(self, config: Config, url: str, facts: Facts) -> None:
        """Show the address, the model and its device, and a request to try."""
        model = config.require_model()
        seconds = time.monotonic() - self._started_s
        capacity = int(facts.get("kv_tokens", 0))
        page = "" if config.server.disable_ui else f"In a browser: {url}/\n"
        write_line(
            f"Quartet is ready at {url}/v1 after {seconds:.1f} s: model {model.name} "
            f"({facts.get('dtype', '?')} on {facts.get('device', '?')}, "
            f"{facts.get('attention', 'no')} attention), "
            f"KV cache {capacity} tokens, policy {config.scheduler.schedule_policy}, "
            f"tool calls {facts.get('tool_call_parser', '?')}, reasoning {facts.get('reasoning_parser', '?')}.\n"
            f"{page}Try: curl {url}/v1/chat/completions -H 'content-type: application/json' "
            f'-d \'{{"model": "{model.name}", "stream": true, '
            f'"messages": [{{"role": "user", "content": "Hello!"}}]}}\'',
            STDOUT,
        )
