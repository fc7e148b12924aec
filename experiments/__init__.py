"""One file for each table or figure of the two papers, run as `python -m experiments.NAME`; see docs/experiments.md."""
