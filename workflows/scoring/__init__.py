"""Scoring on a cluster: layers, heads and channels of models that no worker holds whole."""
