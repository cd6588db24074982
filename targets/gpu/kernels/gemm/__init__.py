"""Kernel templates of GEMMs: CUDA cores, tensor cores (mma.sync, wgmma), split-K, Stream-K and the epilogue."""
