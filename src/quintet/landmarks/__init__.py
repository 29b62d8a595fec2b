"""Fifteen anatomical landmarks on frontal chest X-rays: four training phases, and a heatmap network trained in one stage."""
