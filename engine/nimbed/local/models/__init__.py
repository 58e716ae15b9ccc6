"""One file an architecture, over shared parts."""
