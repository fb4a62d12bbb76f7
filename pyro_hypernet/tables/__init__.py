"""Tables of files as tensors."""
