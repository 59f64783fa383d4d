"""Entry of the worker process; started by the supervisor."""

from quartet.runtime.process import run_process
from worker_proc.process import main

if __name__ == "__main__":
    run_process(main)
