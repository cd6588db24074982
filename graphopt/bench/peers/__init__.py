"""Runtimes that graphopt is compared with: ONNX Runtime, torch, TVM, and other selection strategies of graphopt."""
