"""Autoencoder, patch embedding, backbone and heads."""
