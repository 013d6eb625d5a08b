"""Kernels that torch.compile makes of plain torch: Triton on GPUs, C++ on CPUs."""
