"""What ckptdb costs, against the least that could be done and against others; see README.md."""
