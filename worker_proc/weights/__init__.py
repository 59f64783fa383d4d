"""Weights: files checked and read, names fused into the tensors the model takes; random ones for dummies."""
