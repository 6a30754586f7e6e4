"""In and out of the official format: checkpoints of others taken in, ours given to others, and proof of both."""
