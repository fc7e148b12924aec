"""How fast it is: `python -m experiments.benchmarks.NAME` from the repository's root."""
