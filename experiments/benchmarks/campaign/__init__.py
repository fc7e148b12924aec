"""The parts of `experiments.benchmarks.gpu_campaign`: data, stages, running, returning."""
