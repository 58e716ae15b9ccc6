"""Models that run behind an HTTP endpoint."""
