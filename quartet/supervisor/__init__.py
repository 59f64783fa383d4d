"""The supervisor: parent of every process. Owns the process table, the epochs, the listening socket, the run directory.

It uses no ZeroMQ, sees no user data and imports nothing heavy, so that nothing but a signal can end it.

    plan.py         configuration -> which processes
    rundir.py       the private run directory, its lock, and the janitor that removes it
    listener.py     the listening socket
    spawn.py        one child incarnation: exec, control channel, pidfd
    liveness.py     when a silent child counts as unresponsive, and when as hung
    error_output.py what a child writes to its standard error, and its last line
    slot.py         one process of the plan, through all its incarnations
    ranks.py        the ranks of a worker, which live and die as one
    restart.py      when to start a dead process again, and when to give up
    supervisor.py   the loop: readiness, heartbeats, restarts, the process table
    shutdown.py     how the launch ends: ordered drain, or failure
    progress.py     what the terminal shows of start-up and recovery
    notify.py       what systemd is told
"""
