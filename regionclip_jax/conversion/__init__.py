"""Conversion of PyTorch, NumPy and safetensors files to model directories; runs no file's code."""
