"""What a vision-language checkpoint's JSON files say about images.

Pixtral resizes an image to whole squares of patches, and each square is one token: a line of image
tokens a row of squares, a break behind each row, and an end behind the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nimbed.errors import CheckpointError, InputError
from nimbed.images import Image
from nimbed.local.json_files import PIXTRAL_FILES, check_keys, read_json
from nimbed.local.models.fields import only, real, whole
from nimbed.local.sentence_config import Prompts
from nimbed.local.vision.tiles import Cutting, Tiles, Tiling

__all__ = [
    "ImageSettings",
    "PixtralSettings",
    "Resized",
    "VisionSettings",
    "templated",
    "vision_facts",
]

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


# CLIP's, which transformers' own processor has, too.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_SPREAD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3

# A mark that NVIDIA's retrieval template carries in its first comment.
_TEMPLATE = "nemo-mistral-retrieval"


class Resized(NamedTuple):
    """How an image is brought to size and normalised.

    Attributes:
        width: Of the result, in pixels.
        height: Likewise.
        mean: Of each channel, from 0 to 1.
        spread: What its distance from the mean is divided by.
    """

    width: int
    height: int
    mean: tuple[float, ...]
    spread: tuple[float, ...]

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """Return the normalised pixels, of shape (height, width, 3).

        Raises:
            InputError: If the image is damaged.
            MissingExtraError: If Pillow is not installed.
        """
        picture = image.rgb()
        from PIL.Image import Resampling

        resized = picture.resize((self.width, self.height), Resampling.BICUBIC)
        pixels = np.asarray(resized, np.float32) / 255
        mean, spread = (np.asarray(values, np.float32) for values in (self.mean, self.spread))
        return np.divide(pixels - mean, spread, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class PixtralSettings:
    """How one model wants its images; an :class:`nimbed.local.vision.settings.ImageSettings`.

    Attributes:
        square: Pixels of a square's side, which one token stands for.
        shrink: Patches a side of a square.
        longest: Pixels of the longer side of an image; a larger one is made smaller.
        mean: Of each channel, from 0 to 1.
        spread: What its distance from the mean is divided by.
        context: The token that stands for a square, and its id in config.json.
        breaks: The token behind a row of squares.
        ends: The token behind the last row.
    """

    square: int
    shrink: int
    longest: int
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    context: tuple[str, int]
    breaks: str
    ends: str

    before: str = ""
    after: str = ""
    spaced: bool = False
    marks: tuple[str, ...] | None = None
    longest_text: int | None = None

    @classmethod
    def read(cls, config: Mapping[str, Any], folder: Path | None = None) -> PixtralSettings:
        """Read config.json and the processor's files beside it.

        Args:
            config: config.json of the checkpoint.
            folder: Where the processor's files are; None reads none.

        Raises:
            CheckpointError: If a value is missing, malformed, or asks for something else.
        """
        vision = config.get("vision_config")
        if not isinstance(vision, dict):
            raise CheckpointError("config.json has no vision_config")
        processor, image = _processor(folder) if folder is not None else ({}, {})
        patch, shrink = whole(vision, "patch_size"), whole(config, "spatial_merge_size", default=2)
        if processor:
            # transformers takes these two for granted where the file leaves them out.
            given = {"patch_size": 16, "spatial_merge_size": 1, **processor}
            only(given, patch_size=patch, spatial_merge_size=shrink)
        only(image, do_resize=True, do_rescale=True, do_normalize=True, resample=_BICUBIC)
        factor = real(image, "rescale_factor", default=1 / 255)
        if image.get("do_center_crop") or abs(factor * 255 - 1) > 1e-6:
            raise CheckpointError(
                "the image processor crops, or multiplies by another number than 1 / 255"
            )
        # Where a file leaves it out transformers has 1024; without a file the network's own size.
        usual = 1024 if image else whole(vision, "image_size", default=1024)
        size = image.get("size") or {"longest_edge": usual}
        if not isinstance(size, dict) or set(size) != {"longest_edge"}:
            raise CheckpointError(
                f"the image processor gives size {size!r}, expected a longest_edge"
            )
        return cls(
            square=patch * shrink,
            shrink=shrink,
            longest=whole(size, "longest_edge"),
            mean=_channels(image, "image_mean", _MEAN),
            spread=_channels(image, "image_std", _SPREAD),
            context=(processor.get("image_token", "[IMG]"), whole(config, _mark_key(config))),
            breaks=processor.get("image_break_token", "[IMG_BREAK]"),
            ends=processor.get("image_end_token", "[IMG_END]"),
        )

    def shown(self, width: int, height: int) -> tuple[list[str], Resized]:
        """Return the tokens of an image of this size in pixels, and how it is brought to size.

        Raises:
            InputError: If it is so narrow that nothing would be left of it.
        """
        ratio = max(width, height) / self.longest
        kept = (
            (width, height)
            if ratio <= 1
            else (math.floor(width / ratio), math.floor(height / ratio))
        )
        columns, rows = (-(-side // self.square) for side in kept)
        if not columns or not rows:
            raise InputError(
                f"image is {width}x{height} pixels, of which nothing is left where the longer side "
                f"has {self.longest}; crop it"
            )
        row = [*[self.context[0]] * columns, self.breaks]
        resized = Resized(columns * self.square, rows * self.square, self.mean, self.spread)
        return [*(row * rows)[:-1], self.ends], resized


def templated(folder: Path, prompts: Prompts) -> Prompts:
    """Return prompts as the checkpoint's chat template joins them to an input.

    sentence-transformers gives every input of a checkpoint that has a template to it, and NVIDIA's
    puts a space between the prompt and the input.

    Raises:
        CheckpointError: If the template is another one.
    """
    template = _template(folder)
    if not template:
        return prompts
    if _TEMPLATE not in template:
        raise CheckpointError(
            f"{folder} has a chat template that nimbed does not know, which may put other tokens "
            f"around a text; if its prompts stand right before a text, take the template out"
        )
    return Prompts(
        query=_spaced(prompts.query),
        passage=_spaced(prompts.passage),
        tasks=tuple((name, _spaced(text)) for name, text in prompts.tasks),
    )


def _spaced(prompt: str) -> str:
    return prompt and f"{prompt} "


def _template(folder: Path) -> str:
    """Return the chat template that sentence-transformers would use, or an empty text."""
    modalities = read_json(folder / "sentence_bert_config.json").get("modality_config")
    if isinstance(modalities, dict) and "message" not in modalities:
        return ""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8", errors="replace")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template")
        if template:
            return str(template)
    return ""


def _processor(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a folder says of its processor, and of its image processor."""
    processor, image = (_read(folder, name) for name in PIXTRAL_FILES)
    nested = processor.pop("image_processor", None)
    return processor, image if nested is None else nested


def _read(folder: Path, name: str) -> dict[str, Any]:
    content = read_json(folder / name)
    check_keys(content, folder / name, PIXTRAL_FILES[name])
    return content


def _channels(image: Mapping[str, Any], name: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    given = image.get(name, usual)
    if (
        not isinstance(given, list | tuple)
        or len(given) != 3
        or not all(isinstance(value, int | float) and 0 < value <= 1 for value in given)
    ):
        raise CheckpointError(f"the image processor gives {name} {given!r}, expected three numbers")
    return tuple(map(float, given))


def _mark_key(config: Mapping[str, Any]) -> str:
    """Return under which of its two names a configuration has the id of an image's token."""
    return "image_token_id" if "image_token_id" in config else "image_token_index"
