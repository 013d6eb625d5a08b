"""The golden check of a kernel before its first use on a GPU, and what follows from it: the trust gate."""
