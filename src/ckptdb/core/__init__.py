"""Records, rankings, texts and other values that all rooms hand to each other. Pure."""
