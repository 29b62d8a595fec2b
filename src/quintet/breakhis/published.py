"""The reference's results of MMNet: mean and SD over 5 folds, scored on one random quadruple per test patient."""

PUBLISHED = {
    "accuracy": (0.878, 0.054),
    "balanced_accuracy": (0.892, 0.049),
    "f1": (0.907, 0.044),
    "auc": (0.956, 0.061),
}
CONFIG = "mmnet"
