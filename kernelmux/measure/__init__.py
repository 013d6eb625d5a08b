"""Timing and correctness of kernels: live on a GPU, or replayed from a journal."""
