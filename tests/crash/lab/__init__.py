"""The fault laboratory: harnesses that hurt a run in every way, and check what is left of it."""
