"""From raw files to prepared arrays, and the parts of the split."""
