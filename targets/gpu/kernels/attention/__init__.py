"""Kernel templates of scaled dot-product attention: CUDA cores, tensor cores, their tiles and estimates."""
