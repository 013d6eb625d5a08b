"""Kernels in plain torch: they run wherever torch does, and stand behind every other backend."""
