"""Parallelism as plain parts: the grid of ranks, collectives with gradients, parallel layers, the cut into stages."""
