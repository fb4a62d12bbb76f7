"""Captured graphs of tensor operations: made smaller, and run from C++ or compiled."""
