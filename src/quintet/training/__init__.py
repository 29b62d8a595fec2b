"""The Lightning Trainer, built one way for every study: precision, seeds, resume, checkpoints, history, warnings."""
