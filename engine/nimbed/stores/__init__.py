"""How fifteen databases store and compare vectors: field type, metric, operator and payload.

Needs no database client. To add a database, add a row to :mod:`nimbed.stores.databases`.
"""

from nimbed.stores.fields import SparseEncoder, StoreField, field, names

__all__ = ["SparseEncoder", "StoreField", "field", "names"]
