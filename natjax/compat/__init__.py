"""Other projects' interfaces, for code that is written for them."""
