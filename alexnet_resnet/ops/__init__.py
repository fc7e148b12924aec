"""Pure functions on arrays: what the papers write as formulas. No state, no configuration, nothing else of ours."""
