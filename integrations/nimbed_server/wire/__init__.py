"""The contract on the wire: requests, their fields and inputs; responses and errors."""
