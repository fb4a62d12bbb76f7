"""Training a guide."""
