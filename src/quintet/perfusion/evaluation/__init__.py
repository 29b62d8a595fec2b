"""From a trained network to predictions, scores and figures."""
