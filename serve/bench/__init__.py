"""The load generator, and models alone in fresh processes: what a user, and what a device, would see."""
