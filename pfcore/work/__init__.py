"""Handlers: found, queued fairly, called, and answered for."""
