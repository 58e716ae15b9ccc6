"""What a vision-language checkpoint's JSON files say about images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nimbed.errors import CheckpointError
from nimbed.local.models.fields import only, whole
from nimbed.local.vision.tiles import Cutting, Tiles, Tiling

__all__ = ["ImageSettings", "VisionSettings", "vision_facts"]

_CONTEXT = "<IMG_CONTEXT>"

# A tile costs hundreds of tokens, so a checkpoint that asks for more is damaged.
_MOST_TILES = 64


class ImageSettings(Protocol):
    """How a model wants its images, and how their tokens stand in a text."""

    @property
    def context(self) -> tuple[str, int]:
        """The token whose place an image's states take, and its id in config.json."""
        ...

    @property
    def before(self) -> str:
        """What stands before an image's tokens."""
        ...

    @property
    def after(self) -> str:
        """What stands behind them."""
        ...

    @property
    def spaced(self) -> bool:
        """Whether a space follows an image that no text follows."""
        ...

    @property
    def marks(self) -> tuple[str, ...] | None:
        """What a user may not write to any effect; None for every special token."""
        ...

    @property
    def longest_text(self) -> int | None:
        """The most tokens of a text without an image, where that is less than the card's."""
        ...

    def shown(self, width: int, height: int) -> tuple[list[str], Cutting]:
        """Return the tokens of an image of a size in pixels, and how it becomes pixels.

        Raises:
            InputError: If the model cannot be shown an image of this size.
        """
        ...


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """How a Nemotron VL wants its images; an :class:`ImageSettings`.

    Attributes:
        tiling: How an image is cut.
        shrink: Patches a side that one image token joins: 2 joins 2x2.
        legacy_shuffle: Whether the joined patches lie transposed (``ps_version`` v1).
        tokens_a_tile: Image tokens a tile.
        context: The token whose place an image's states take, and its id.
    """

    tiling: Tiling
    shrink: int
    legacy_shuffle: bool
    tokens_a_tile: int
    context: tuple[str, int]
    before: str = "<img>"
    after: str = "</img>"
    spaced: bool = True  # in the reference whether or not a text follows
    marks: tuple[str, ...] | None = ("<image>", "<img>", "</img>", _CONTEXT)
    longest_text: int | None = 8192  # the publisher's (models.md 1.3)

    @classmethod
    def read(
        cls, config: Mapping[str, Any], processor: Mapping[str, Any] | None = None
    ) -> VisionSettings:
        """Read config.json and, over it, processor_config.json.

        Args:
            config: config.json of the checkpoint.
            processor: Its processor_config.json, if it has one; only the tiling looks there.

        Raises:
            CheckpointError: If a value is missing, malformed, or asks for something else.
        """
        # Tiles of processor_config.json win: config.json keeps the number of the training.
        own = processor or {}
        nested = own.get("image_processor")
        told = {**config, **(nested if isinstance(nested, dict) else {}), **own}
        only(config, select_layer=-1)
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise CheckpointError("config.json has no vision_config")
        side = whole(config, "force_image_size", default=whole(vision, "image_size"))
        only(vision, image_size=side)
        shrink = _inverse(config.get("downsample_ratio", 0.5))
        a_side = side // whole(vision, "patch_size")
        if a_side % shrink:
            raise CheckpointError(
                f"config.json joins {a_side} patches a side by {shrink}, which leaves a remainder"
            )
        dynamic = told.get("dynamic_image_size", True)
        least = whole(told, "min_input_tiles", default=1) if dynamic else 1
        most = whole(told, "max_input_tiles", default=6) if dynamic else 1
        if not least <= most <= _MOST_TILES:
            raise CheckpointError(f"the configuration asks for {least} to {most} tiles an image")
        version = config.get("ps_version", "v2")
        if version not in ("v1", "v2"):
            raise CheckpointError(f"config.json asks for ps_version {version!r}; there is v1, v2")
        return cls(
            tiling=Tiling(side, least, most, bool(told.get("use_thumbnail", True))),
            shrink=shrink,
            legacy_shuffle=version == "v1",
            tokens_a_tile=(a_side // shrink) ** 2,
            context=(_CONTEXT, whole(config, "img_context_token_id")),
        )

    def shown(self, width: int, height: int) -> tuple[list[str], Cutting]:
        """Return the tokens of an image of this size in pixels, and how it is cut into tiles."""
        grid = self.tiling.grid(width, height)
        return [_CONTEXT] * (grid.tiles * self.tokens_a_tile), Tiles(grid, self.tiling.side)


def vision_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card says of a vision-language model beyond what it says of any model.

    Args:
        config: config.json of the checkpoint.

    Raises:
        CheckpointError: If a value is malformed.
    """
    language = config.get("llm_config")
    positions = whole(language, "max_position_embeddings") if isinstance(language, dict) else 1
    # The reference joins prefix and text by a space.
    query, passage = (
        f"{config.get(name, usual)} ".lstrip()
        for name, usual in (("query_prefix", "query:"), ("passage_prefix", "passage:"))
    )
    return {
        "max_tokens": min(whole(config, "p_max_length", default=10240), positions),
        "query_prompt": query,
        "passage_prompt": passage,
        "asymmetric": query != passage,
        "modalities": ("text", "image", "text_image"),
    }


def _inverse(ratio: object) -> int:
    shrink = round(1 / ratio) if isinstance(ratio, int | float) and 0 < ratio <= 1 else 0
    if not shrink or shrink * ratio != 1:  # type: ignore[operator]
        raise CheckpointError(f"config.json gives downsample_ratio {ratio!r}, expected 1, 1/2, ...")
    return shrink
