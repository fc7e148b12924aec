"""From a configuration to a trained network: the state, the optimizer, the step, checkpoints, the loop."""
