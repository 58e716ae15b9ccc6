"""What a file of vectors says about itself.

Knows nothing about how a format stores it, except for the keys of key-value metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from nimbed.errors import ConfigurationError
from nimbed.spec import InputType, VectorSpec, check_literal

__all__ = ["RESERVED", "TOKENS_FIELD", "TRUNCATED_FIELD", "VECTOR_FIELD", "Label"]

VECTOR_FIELD = "embedding"
TOKENS_FIELD = "embedding_tokens"
TRUNCATED_FIELD = "embedding_truncated"
#: Names that a file of vectors gives to columns of its own.
RESERVED = (VECTOR_FIELD, TOKENS_FIELD, TRUNCATED_FIELD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The contract of the vectors in a file, and where their texts and ids are.

    Attributes:
        spec: The contract of every vector.
        input_type: The role that all of them were embedded for.
        text_field: Name of the column of texts.
        id_field: Name of the column of ids, if there is one.
    """

    spec: VectorSpec
    input_type: InputType
    text_field: str = "text"
    id_field: str | None = None

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the facts as the key-value metadata of an Arrow schema."""
        facts = {
            "nimbed.spec": self.spec.to_json(),
            "nimbed.input_type": self.input_type,
            "nimbed.text_field": self.text_field,
        }
        if self.id_field is not None:
            facts["nimbed.id_field"] = self.id_field
        return {key.encode(): value.encode() for key, value in facts.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes], *, source: str) -> Label:
        """Rebuild a label from :meth:`to_metadata`; other keys may stand beside its own.

        Raises:
            ConfigurationError: If the metadata has no spec, or an altered one.
        """
        try:
            spec = VectorSpec.from_json(metadata[b"nimbed.spec"])
            input_type = metadata[b"nimbed.input_type"].decode()
            text_field = metadata[b"nimbed.text_field"].decode()
        except KeyError as error:
            raise ConfigurationError(
                f"{source} was not written by nimbed: its schema metadata lacks "
                f"{error.args[0].decode()}"
            ) from None
        check_literal("input_type", input_type, InputType)
        identity = metadata.get(b"nimbed.id_field")
        return cls(
            spec=spec,
            input_type=cast(InputType, input_type),
            text_field=text_field,
            id_field=None if identity is None else identity.decode(),
        )
