"""Compiles modules of LLVM IR for the processor at hand, and runs their functions on the threads of torch."""

import ctypes
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import torch
from llvmlite import ir

_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class CompiledFunction:
    """A function(arguments *) of a module. Its machine code lives as long as this object."""

    def __init__(self, module: ir.Module, name: str) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        passes = llvm.create_pass_builder(machine, llvm.PipelineTuningOptions(speed_level=2))
        passes.getModulePassManager().run(parsed, passes)
        self._engine = llvm.create_mcjit_compiler(parsed, machine)
        self._engine.finalize_object()
        self._address = self._engine.get_function_address(name)
        self._function = _Function(self._address)

    def __call__(self, arguments: ctypes.Structure, threads: int = 1) -> None:
        """Run the function in so many threads at once, with the same arguments; returns when all are done."""
        start = ctypes.addressof(arguments)
        if threads == 1:
            self._function(start)
        else:
            _openmp().GOMP_parallel(ctypes.c_void_p(self._address), ctypes.c_void_p(start), threads, 0)


@cache
def _openmp() -> ctypes.CDLL:
    """Return the OpenMP library that torch has loaded: its threads are already there, and waiting ones take no time."""
    folder = Path(torch.__file__).parent
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    for path in sorted(paths, key=lambda one: not one.startswith(str(folder))):
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel"):
            return library
    raise RuntimeError("torch has no OpenMP library with GOMP_parallel; start with --cpu-threads 1")
