"""Whether fits of a kind are right on data from the model itself: simulation-based calibration."""
