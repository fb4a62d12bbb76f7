"""Invertible maps, networks of them, and the coordinates of weight space that they move."""
