"""Entry of the tokenizer process; started by the supervisor."""

from quartet.runtime.process import run_process
from tokenizer_proc.actor import TokenizerActor

if __name__ == "__main__":
    run_process(TokenizerActor)
