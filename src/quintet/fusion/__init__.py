"""Multimodal fusion with missing modalities: diffusion and test-time training against simple baselines."""
