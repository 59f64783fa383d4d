"""Entry of the detokenizer process; started by the supervisor."""

from detok_proc.process import main
from quartet.runtime.process import run_process

if __name__ == "__main__":
    run_process(main)
