"""The client of the engine.

async_engine.py   the async face: generate(), output streams, queries, drain
core.py           live requests, process table, replay; sans-IO
journal.py        each live request with the output delivered so far
encode_jobs.py    jobs at the tokenizers
"""
