"""The operator: observes VFIOMigrations, plans them, and instructs the node agents."""
