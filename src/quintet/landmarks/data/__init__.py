"""The raw folder, the prepared arrays made from it, and the split."""
