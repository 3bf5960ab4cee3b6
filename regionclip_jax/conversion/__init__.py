"""Weights from elsewhere: PyTorch and safetensors files into model directories. Executes no file's
code."""
