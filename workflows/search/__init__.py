"""The search for the best schedule: Ray Tune over compress jobs, proposed by Optuna, bounded by SIA."""
