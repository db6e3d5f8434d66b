"""The SIA check as a job: a model by name, ablations on Ray, a folder with the result."""
