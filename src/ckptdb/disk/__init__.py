"""The truth: checkpoint directories and their files. Nothing here knows SQL."""
