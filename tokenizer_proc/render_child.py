"""The child of a tokenizer process that renders its chat template, and may die of it.

A template can keep the interpreter busy within one operation that no trace function and no signal handler interrupts:
the sum of many lists, the comparison of lists that contain themselves many times over. The kernel ends the process
then, by a timer of its processor time; the tokenizer process reports the request and starts another child.
"""

import signal
import sys
from typing import IO

import msgspec

from quartet.runtime.lifetime import depend_on_parent
from tokenizer_proc.memory_limit import limit_memory
from tokenizer_proc.render_frames import Load, NotRendered, Render, Rendered, read, write
from tokenizer_proc.renderer import LocalRenderer, RenderError

SPARE_CPU_S = 0.25
"""What a template gets beyond its deadline, which the sandbox reports in better words."""
SPARE_MEMORY_BYTES = 1 << 30
MAX_REASON = 1000


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the pipe ends."""
    renderer = LocalRenderer()
    decoder = msgspec.json.Decoder(Load | Render)
    while (data := read(requests)) is not None:
        try:
            answer = _answer(renderer, decoder.decode(data))
        except RenderError as error:
            answer = NotRendered(error.kind, error.reason[:MAX_REASON])
        try:
            write(answers, answer)
        except UnicodeEncodeError as error:
            # A template can make half a surrogate pair.
            write(answers, NotRendered("failed", type(error).__name__))


def _answer(renderer: LocalRenderer, request: Load | Render) -> Rendered | NotRendered:
    if isinstance(request, Load):
        renderer.load(request.source)
        return Rendered("")
    signal.setitimer(signal.ITIMER_PROF, request.deadline_s + SPARE_CPU_S)
    try:
        return Rendered(renderer.render(request.variables, request.deadline_s))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


if __name__ == "__main__":
    depend_on_parent(int(sys.argv[1]))
    limit_memory(SPARE_MEMORY_BYTES)
    serve(sys.stdin.buffer, sys.stdout.buffer)
