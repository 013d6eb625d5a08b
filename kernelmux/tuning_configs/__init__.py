"""Tuned tables of the Triton MoE GEMMs: reading, writing, looking up, reconciling; and the tables themselves."""
