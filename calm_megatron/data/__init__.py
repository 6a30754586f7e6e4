"""Text to tokens to patches; never communicates."""
