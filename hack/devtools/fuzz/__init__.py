"""Randomized inputs for everything that reads what another process wrote; `make fuzz` runs it."""
