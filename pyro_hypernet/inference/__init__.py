"""Objectives, training, checkpoints and Markov chains."""
