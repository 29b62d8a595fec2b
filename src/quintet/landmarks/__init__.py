"""Fifteen anatomical landmarks on frontal chest X-rays, in four training phases and one stage of our own."""
