"""Generative heads: hidden state and noise to a sample of the next vector."""
