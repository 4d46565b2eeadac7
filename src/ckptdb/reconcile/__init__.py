"""Bringing the index to what is on disk: observed × recorded → plan (pure) → applied.

Nothing is imported here: the planner has to load without the catalog and the disk's actors.
"""
