"""Transformers' architectures as lists of pipeline stages, cut for tensor parallelism by their own plans."""
