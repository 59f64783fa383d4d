"""Entry of the scheduler process; started by the supervisor."""

from quartet.runtime.process import run_process
from scheduler_proc.process import main

if __name__ == "__main__":
    run_process(main)
