"""Models of our own; every other model comes from transformers."""
