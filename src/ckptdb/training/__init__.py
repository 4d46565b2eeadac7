"""One run inside a training loop: saving, pruning, resuming, and its index."""
