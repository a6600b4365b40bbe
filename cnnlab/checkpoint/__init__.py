"""Checkpoints: save and restore any pytree, verified."""
