"""What was found, an experiment a module: `python -m experiments.NAME` from the repository's root."""
