"""Training: the pure step, the compiled experiment, the loop, the run's folder."""
