"""From raw files to masks and prepared arrays."""
