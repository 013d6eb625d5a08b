"""Kernels of flashinfer-python, by the word of whoever wrote them: cutlass, cudnn, cublas, trtllm, cutedsl, b12x."""
