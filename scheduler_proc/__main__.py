"""Entry of the scheduler process."""

from quartet.runtime.process import run_process
from scheduler_proc.actor import SchedulerActor

if __name__ == "__main__":
    run_process(SchedulerActor)
