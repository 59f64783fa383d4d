"""The client of the engine.

async_engine.py   the async face: generate(), output streams, queries, drain
adoption.py       requests of a predecessor of this process
core.py           live requests and their replay; sans-IO
request.py        a request, its output and the owner's face
processes.py      process table, epochs and metrics of the launch
journal.py        each live request with the output delivered so far
encode_jobs.py    jobs at the tokenizers
queries.py        queries to the scheduler
"""
