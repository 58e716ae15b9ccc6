"""The contract on the wire: JSON in, checked values out; vectors in, JSON out."""
