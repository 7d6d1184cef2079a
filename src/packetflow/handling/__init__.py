"""Handlers, from a Python function to what the core calls: signatures, middleware, processes, traces."""
