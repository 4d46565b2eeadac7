"""The report and the page that people look at.

Needs more than the rest of ckptdb (the extras ``report`` and ``web``), so nothing imports it but
the two commands, when they run.
"""
