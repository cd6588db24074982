"""Operators of older opsets, written as operators of a newer one that compute the same in ONNX Runtime.

`table.py` lists every change of every standard operator, with the rule that carries a node over it or the statement that
its meaning stayed. onnx's own version converter does not enter functions, and changes what Resize, Upsample, Softmax,
Dropout and others compute.
"""
