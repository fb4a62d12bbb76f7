"""Monte Carlo without a guide."""
