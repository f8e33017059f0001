"""Weights and state on disk: Hugging Face folders in and out, and the checkpoints of a run."""
