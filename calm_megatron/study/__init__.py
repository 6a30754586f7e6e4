"""Grids of training runs and what they show side by side."""
