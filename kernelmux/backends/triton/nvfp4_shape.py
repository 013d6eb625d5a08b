"""Sizes of the planes layout (nvfp4_planes). Imports nothing, so that a configuration can be chosen without torch."""

CHUNK = 256
WORDS = 64
PLANES = 4
