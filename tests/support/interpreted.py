"""Has a script run Triton kernels on the CPU: Triton's interpreter, repaired as for the tests in tests/kernels."""

import sys

INTERPRETED = "TRITON_INTERPRET"


def interpret_kernels() -> None:
    """Switch this process to the interpreter.

    Triton settles the mode when a kernel is decorated, so this comes before whatever imports it. Raises RuntimeError
    where that is too late.
    """
    import os

    if "triton" in sys.modules and not sys.modules["triton"].knobs.runtime.interpret:
        raise RuntimeError("Triton is imported already, and not to interpret")
    os.environ[INTERPRETED] = "1"
    import triton

    triton.knobs.runtime.interpret = True
    from tests.kernels import interpreter_options, interpreter_shim

    interpreter_shim.install()
    interpreter_options.skip_overflow_checks()
