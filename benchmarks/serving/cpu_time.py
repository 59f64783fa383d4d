"""Processor time of a process, on Linux."""

import os


def cpu_seconds(pid: int) -> float:
    """Return the user and system seconds that a process has used."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
