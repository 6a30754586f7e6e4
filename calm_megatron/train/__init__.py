"""The loop and its engine; read loop.py first."""
