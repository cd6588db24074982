"""Tensors and models in few bytes: weight sharing, compressed columns, bitmaps, Huffman codes, and the file of them."""
