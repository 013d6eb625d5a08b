"""Tuned tables of the Triton MoE GEMMs: reading, writing, looking up and reconciling them, and the tables themselves."""
