"""Operators of older opsets, written as operators of a newer one that compute the same in ONNX Runtime.

`table.py` has the rules that convert a node over a change of its operator, `unchanged.py` the changes that need none.
onnx's own version converter does not enter functions, and changes what Resize, Upsample, Softmax, Dropout and others
compute.
"""
