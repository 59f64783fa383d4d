"""The child of a tokenizer process that compiles the grammars of clients, and may die of one."""

import resource
from pathlib import Path

import msgspec

from quartet.checkpoint.tokenizer_loading import is_library_error
from quartet.wire.errors import ModelError
from tokenizer_proc.child import ended_after, serve
from tokenizer_proc.child_frames import Compile, Compiled, NotCompiled, Open
from tokenizer_proc.grammar_bounds import GrammarError
from tokenizer_proc.grammars import GrammarCompiler, load_compiler
from tokenizer_proc.memory_limit import limit_memory
from tokenizer_proc.thinking import Thinking

LOADING_MEMORY_BYTES = 8 << 30
"""The library reads the largest tokenizers within a tenth of it; threads reserve address space."""
COMPILING_MEMORY_BYTES = 512 << 20
STACK_BYTES = 2 << 20

_decode = msgspec.json.Decoder(Open | Compile).decode


class GrammarChild:
    """Answers for one model."""

    def __init__(self) -> None:
        self._compiler: GrammarCompiler | None = None

    def answer(self, data: bytes) -> Compiled | NotCompiled:
        """Return the answer to a request."""
        request = _decode(data)
        try:
            if isinstance(request, Compile):
                return self._compile(request)
            self._compiler = load_compiler(Path(request.folder), request.vocab_size, request.eos_token_ids)
            limit_memory(COMPILING_MEMORY_BYTES)
            return Compiled("")
        except (GrammarError, ModelError) as error:
            return NotCompiled(str(error))
        except MemoryError:
            return NotCompiled("it needs too much memory")
        except BaseException as error:
            if not is_library_error(error):
                raise
            return NotCompiled(f"llguidance cannot compile it ({type(error).__name__})")

    def _compile(self, request: Compile) -> Compiled:
        assert self._compiler is not None
        with ended_after(request.deadline_s):
            return Compiled(self._compiler.compile(request.grammar, Thinking(request.thinking)))


if __name__ == "__main__":
    # What fits here fits into the threads of a worker, which have several times as much.
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    serve(LOADING_MEMORY_BYTES, GrammarChild().answer)
