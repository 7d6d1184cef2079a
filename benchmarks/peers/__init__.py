"""The same echo-upper work by our peers and us, side by side: ``python -m benchmarks.peers``."""
