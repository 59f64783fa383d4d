"""The model worker: weights, KV pool, per-slot device state and sampling; the only process that loads torch.

actor.py connects it to the actor runtime, executor.py is the thread that owns link and device, session.py the hello
protocol, slots.py the state of each running sequence, runner.py one step on the device, simulated.py a runner without
torch. Queueing and admission are the scheduler's.
"""
