"""Bayesian neural networks from torch modules."""
