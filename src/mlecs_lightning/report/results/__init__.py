"""The results of runs: read, grouped, compared."""
