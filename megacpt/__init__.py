"""megacpt: continue the pre-training of a language model on new domains without losing what it knew."""

__version__ = "0.1.0"
