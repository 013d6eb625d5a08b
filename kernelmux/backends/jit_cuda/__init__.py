"""CUDA C++ kernels compiled on the user's machine by NVRTC: sources in ``csrc``, launched through the driver."""
