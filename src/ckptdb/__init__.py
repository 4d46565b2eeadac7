"""A checkpoint registry for training loops."""
