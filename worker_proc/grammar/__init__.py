"""Grammars on the worker: compiled once, followed by one matcher a slot, applied to the logits as packed masks.

No torch: the simulated worker obeys grammars, too. The state of a slot is a function of its grammar and its output ids,
so that a replay in another process restores it.
"""
