"""The orchestration around cascade_ops: configuration, run directories, the job, the CLI."""
