"""The nimbed command."""
