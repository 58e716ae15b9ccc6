"""A tiny random Mistral 3 checkpoint that transformers saved, and transformers' own answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image as Pillow
from tests.engine.local.checkpoints import sentence_transformers_files, write_json
from tests.engine.local.tiny_decoders import decoder_config
from tests.engine.local.tiny_tokenizers import llama3_tokenizer
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

IMAGE, BREAK, END = MARKS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
PATCH, SHRINK, LONGEST = 4, 2, 40
PROMPTS = {"query": "query:", "document": "passage:"}
# The beginning of NVIDIA's own template, and what it does to one text with or without a prompt.
TEMPLATE = (
    "{# nemo-mistral-retrieval-v1 #}{% for m in messages %}{% if not loop.first %} {% endif %}"
    "{{ m.content[0].text }}{% endfor %}"
)


def tiny_mistral3(
    folder: Path,
    *,
    language: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
    processor: dict[str, Any] | None = None,
    head: bool = False,
    seed: int = 0,
) -> Path:
    """Write the checkpoint; returns the folder.

    Args:
        folder: Made if it does not exist.
        language: Changes to text_config.
        vision: Changes to vision_config.
        changes: To the rest of config.json.
        processor: Changes to the image processor.
        head: Whether it is saved with a head that generates text.
        seed: Of the weights.
    """
    tokenizer = llama3_tokenizer(extra=MARKS)
    text = {
        "model_type": "ministral3",
        **decoder_config(tokenizer),
        "max_position_embeddings": 512,
        "rope_parameters": {
            **{"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0},
            # Short, so that the queries' growth shows within a sentence.
            **{"original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.5},
        },
        **(language or {}),
    }
    tower = {
        **{"model_type": "pixtral", "hidden_size": 24, "intermediate_size": 40},
        **{"num_hidden_layers": 2, "num_attention_heads": 3, "image_size": LONGEST},
        **{"patch_size": PATCH, "hidden_act": "silu", **(vision or {})},
    }
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config=tower,
        image_token_index=tokenizer.token_to_id(IMAGE),
        spatial_merge_size=SHRINK,
        **(changes or {}),
    )
    config.text_config.is_causal = False
    torch.manual_seed(seed)
    kind = "Mistral3ForConditionalGeneration" if head else "Mistral3Model"
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name or "ln_pre" in name:
                parameter.add_(1)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(
        folder / "processor_config.json",
        {
            **{"processor_class": "PixtralProcessor", "patch_size": PATCH},
            **{"spatial_merge_size": SHRINK, "image_token": IMAGE},
            "image_processor": {
                "size": {"longest_edge": LONGEST},
                **{"do_resize": True, "resample": 3, **(processor or {})},
            },
        },
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    sentence_transformers_files(folder, pooling="mean", prompts=PROMPTS, longest=500)
    return folder


class Oracle:
    """transformers' tower, projector and language model on the ids that its processor makes.

    Its processor itself needs torchvision; the rule for the tokens is written out here.

    Args:
        folder: Of :func:`tiny_mistral3`.
    """

    def __init__(self, folder: Path) -> None:
        self.model = transformers.Mistral3Model.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json")
        )
        own = json.loads((folder / "processor_config.json").read_text("utf-8"))["image_processor"]
        self.processor = PixtralImageProcessorPil(
            **{**own, "patch_size": {"height": PATCH * SHRINK, "width": PATCH * SHRINK}}
        )

    def vector(
        self, text: str, image: Pillow.Image | None = None, *, literal: bool = False
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Embed one whole prompt; returns the unit vector and the token ids.

        Args:
            text: With ``[IMG]`` once where the image stands.
            image: What stands there.
            literal: Read special tokens in the text as words.
        """
        given: dict[str, Any] = {}
        if image is not None:
            made = self.processor(image.convert("RGB"), return_tensors="pt")
            height, width = (int(side) // (PATCH * SHRINK) for side in made["image_sizes"][0])
            rows = [[IMAGE] * width + [BREAK] for _ in range(height)]
            rows[-1][-1] = END
            text = text.replace(IMAGE, "".join(map("".join, rows)))
            given = {"pixel_values": made["pixel_values"], "image_sizes": made["image_sizes"]}
        ids = self.tokenizer(text, split_special_tokens=literal)["input_ids"]
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([ids]), **given).last_hidden_state[0]
        mean = out.double().mean(0).numpy()
        return (mean / np.linalg.norm(mean)).astype(np.float32), ids
