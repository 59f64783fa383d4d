"""Entry of the worker process. The OpenMP settings must stand before torch is loaded."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from quartet.runtime.process import run_process
from worker_proc.actor import WorkerActor

if __name__ == "__main__":
    run_process(WorkerActor)
