"""A vector spec in, the field that a given database wants out: type, metric, operator, payload.

Pure numpy; no database client is imported, and none is needed to ask.
"""

from nimbed.stores.store_field import StoreField, field, names

__all__ = ["StoreField", "field", "names"]
