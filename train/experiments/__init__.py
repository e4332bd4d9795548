"""The studies' experiments: one file each."""
