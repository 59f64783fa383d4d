"""The scheduler core under a virtual clock: what a policy or a setting does to traffic, in seconds instead of hours.

request.py    one request of a workload; prompts.py gives it token ids with exactly the shared prefixes it states
trace.py      workloads as JSONL files
scenarios.py  workloads by name, each with the engine that shows its point; capacity.py measures what it can take
cost.py       what a step costs: five coefficients, fitted from measured steps; presets.py ships fitted ones
device.py     the simulated worker: slots, lengths and sampled ids of each step
driver.py     the clock: arrivals, steps and results in the order of their times
record.py     what a run leaves behind; report.py makes metrics of it, plots.py pictures, tables.py text
advise.py     a recommendation for a trace: windows.py draws stretches of it, combinations.py names what to try,
              trials.py measures and compares, advice_report.py writes tables and a report
cli.py        quartet simulate | advise

The scheduler is the very code that the engine runs; nothing of it is imitated here.
"""
