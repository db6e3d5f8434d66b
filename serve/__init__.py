"""The served application on Ray Serve, its page, and the load generator that measures it."""
