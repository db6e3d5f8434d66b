"""Recovery fits on a Ray cluster."""
