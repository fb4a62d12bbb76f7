"""Posteriors for ArviZ, and pictures of them."""
