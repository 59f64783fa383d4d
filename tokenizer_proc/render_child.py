"""The child of a tokenizer process that renders its chat template, and may die of it.

A template can keep the interpreter busy within one operation that no trace function and no signal handler interrupts:
the sum of many lists, the comparison of lists that contain themselves many times over. The kernel ends the process
then (tokenizer_proc.child); the tokenizer process reports the request and starts another child.
"""

import msgspec

from tokenizer_proc.child import ended_after, serve
from tokenizer_proc.child_frames import Load, NotRendered, Render, Rendered
from tokenizer_proc.renderer import LocalRenderer, RenderError

SPARE_CPU_S = 0.25
"""What a template gets beyond its deadline, which the sandbox reports in better words."""
SPARE_MEMORY_BYTES = 1 << 30
MAX_REASON = 1000

_decode = msgspec.json.Decoder(Load | Render).decode


class RenderChild:
    """Answers for one template."""

    def __init__(self) -> None:
        self._renderer = LocalRenderer()

    def answer(self, data: bytes) -> Rendered | NotRendered:
        """Return the answer to a request."""
        try:
            text = self._answer(_decode(data))
            # A template can make half a surrogate pair.
            text.encode()
        except RenderError as error:
            return NotRendered(error.kind, error.reason[:MAX_REASON].encode(errors="replace").decode())
        except UnicodeEncodeError as error:
            return NotRendered("failed", type(error).__name__)
        return Rendered(text)

    def _answer(self, request: Load | Render) -> str:
        if isinstance(request, Load):
            self._renderer.load(request.source)
            return ""
        with ended_after(request.deadline_s + SPARE_CPU_S):
            return self._renderer.render(request.variables, request.deadline_s)


if __name__ == "__main__":
    serve(SPARE_MEMORY_BYTES, RenderChild().answer)
