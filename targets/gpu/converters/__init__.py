"""Converters of ONNX operators for GPUs: Relax operators, TE definitions, and kernels emitted as TensorIR."""
