"""Entry point of the worker process. The OpenMP settings must precede the import of torch."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from quartet.runtime.process import run_process
from worker_proc.process import main

if __name__ == "__main__":
    run_process(main)
