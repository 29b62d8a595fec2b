"""Diffusion over missing modalities, and test-time training."""
