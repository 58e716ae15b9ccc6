"""How fifteen databases store and compare vectors: field type, metric, operator and payload.

Needs no database client. To add a database, add a row to :mod:`nimbed.stores.databases`.
"""

from nimbed.stores.encoder import SparseEncoder
from nimbed.stores.fields import StoreField, field, names

__all__ = ["SparseEncoder", "StoreField", "field", "names"]
