"""Will it fit, how fast; imports no torch."""
