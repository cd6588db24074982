"""Parts that every target shares: import from ONNX to Relax, fusion, lowering, and caches of kernels."""
