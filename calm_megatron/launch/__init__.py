"""Processes onto machines: Slurm scripts, launchers, and runs that come back by themselves."""
