"""Marlin: weight-only GEMMs for GPUs whose tensor cores lack the format of the weights, as vLLM ships it."""
