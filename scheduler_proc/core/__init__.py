"""The sans-IO scheduler: frames in, frames out, time and seeds as arguments.

scheduler.py   the face: handle(), next_deadline(), audit(), snapshot(); the pump that keeps two steps outstanding
state.py       everything the parts below share
intake.py      Submit, Abort, LiveSet, deadlines, drain
prefill.py     one prefill pass over the queue: policies.py orders it, admission.py says what fits
decode.py      one decode step: memory check, retraction.py picks victims
results.py     StepResult and StepFailed: append, stop, finish
kv.py          pages of requests: pages.py (pool) and radix.py (tree) under one roof
request.py     one request and the literal table of its states; ratio.py, lengths.py: RAT and LEN rules
audit.py       every invariant, by name
"""
