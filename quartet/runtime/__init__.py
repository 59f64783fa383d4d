"""The actor runtime: what an actor is, the links it speaks over, and how a process is entered.

actor.py says what the runtime asks of an actor and gives it; link.py is ZeroMQ; memory.py its in-memory twin;
control.py the socketpair to the supervisor; process.py the entry of every child process.
"""
