"""Weights: checkpoint files, checked and read into the fused tensors of the model; random ones as dummies."""
