"""The CPU target: converters, kernels, schedules, code generation and measurement."""
