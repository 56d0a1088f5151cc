"""Faults on real processes, and the checker that judges what devices did meanwhile."""
