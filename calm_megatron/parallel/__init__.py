"""Who I am among the ranks."""
