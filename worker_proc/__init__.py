"""The model worker: weights, KV pool, per-slot device state and sampling; the only process that loads torch.

actor.py is the process's face to the runtime, executor.py the thread that owns link and device, session.py the
hello protocol, slots.py what each running sequence occupies, runner.py one step on the device, simulated.py its twin
without torch. It decides nothing about queueing or admission.
"""
