"""Measures servers and the offline engine: workloads, a sender that keeps to a schedule, statistics, comparisons.

    datasets, schedule ─► plan: PlannedRequest ─► fleet: client processes ─► Record ─► metrics ─► report, plots, compare
                                                  sender, stream, routes

Datasets, schedules, streams, metrics and comparisons do no I/O on a network, so tests drive them directly.
"""
