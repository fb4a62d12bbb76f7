"""Draws of a guide that is nearly right, made right."""
