"""Training: the loop, and what happens between its steps."""
