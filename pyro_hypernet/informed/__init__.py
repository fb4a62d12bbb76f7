"""What is found out about a model and built into a guide."""
