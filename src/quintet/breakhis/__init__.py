"""BreakHis: multi-magnification histopathology, benign or malignant, by patient."""
