"""The index: SQL. Never opens a checkpoint directory."""
