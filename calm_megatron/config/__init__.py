"""What a run is; imports no torch."""
