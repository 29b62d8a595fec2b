"""Perfusion territories of the internal carotid arteries: 3 architectures x loss terms, and which differences are real."""
