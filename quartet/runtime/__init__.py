"""The actor runtime: what a core is, and what runs one.

core.py       the face of a core: frames and time in, frames out
shell.py      runs a core on the event loop of its process
context.py    what the runtime gives the main coroutine of a process
process.py    the entry of every child process: assignment, heartbeats, snapshots
link.py       the ZeroMQ links between processes;  control.py  the socketpair to the supervisor
pump.py       carries frames between cores of one process;  memory.py  the in-memory wire beneath it
interpreter.py  garbage collection and logging of a child
lifetime.py   signals, and the end of a child with its parent;  output.py  output that neither fails nor blocks
clock.py      time as a parameter
"""
