"""Administration: queries to the scheduler, health and readiness, the process table, Prometheus metrics."""
