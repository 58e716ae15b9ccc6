"""Models that run in this process, on CUDA or the CPU."""
