"""Scores from samples."""
