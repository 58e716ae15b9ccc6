"""Which backend runs a model, torch or ONNX Runtime, and the model read into it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nimbed.cards import ModelCard
from nimbed.embedder import Backend
from nimbed.errors import ConfigurationError, MissingExtraError, install_line, missing_extra
from nimbed.local.checkpoint import Checkpoint
from nimbed.local.device import may_have_gpu, multiplies_bfloat16, place, release
from nimbed.local.models.fields import scaled_rotation
from nimbed.local.tensors import weight_files
from nimbed.spec import InputType, check_literal

if TYPE_CHECKING:  # which import the tokenizers library
    from nimbed.local.plan import Engine
    from nimbed.local.tokenizer import InputTokenizer

__all__ = [
    "Loaded",
    "ModelTokens",
    "check_backend",
    "check_context",
    "chosen_backend",
    "read_model",
    "tokenizer_beside",
    "why_torch",
]

# What ONNX Runtime has a graph for; nimbed.local.onnx.encoders makes it.
_GRAPHS = ("bert", "distilbert", "gte", "modernbert", "mpnet", "nomic_bert", "xlm_roberta")

# Those of them whose positions are rotations.
_ROTATED = ("gte", "modernbert", "nomic_bert")

_TORCH_ALONE = (
    "(on a machine without a GPU first: pip install torch "
    "--index-url https://download.pytorch.org/whl/cpu)"
)

# Characters that are tokenized under the interpreter's lock beside a GPU: the cores are free there,
# and the lock is what everybody waits for. Of 32 queries a request it took 30 %.
_FEW_BESIDE_GPU = 256


class Loaded(NamedTuple):
    """A model that is ready to embed.

    Attributes:
        tokenizer: Its tokenizer.
        engines: A replica for each device.
        release: To be called after the last reference to the engines is gone.
    """

    tokenizer: InputTokenizer
    engines: tuple[Engine, ...]
    release: Callable[[], None]


def check_backend(
    backend: str, checkpoint: Checkpoint, *, devices: Sequence[str], dtype: str
) -> None:
    """Refuse a backend that cannot do what else was asked for.

    Raises:
        ConfigurationError: If there is no such backend, or it does not run the model so.
    """
    check_literal("backend", backend, Backend)
    if checkpoint.card.architecture == "static":
        _check_static(checkpoint, backend, devices, dtype)
        return
    if dtype == "int8":
        why = why_torch(checkpoint, devices=devices, dtype=dtype)
        if backend == "torch":
            why = "backend 'torch' was asked for"
        if why:
            raise ConfigurationError(
                f"dtype 'int8' is an encoder's on a CPU, by ONNX Runtime, and {why}; leave out one "
                f"or the other (for vectors of bytes, of any model: embedding_type='int8')"
            )
    if backend == "onnxruntime":
        why = why_torch(checkpoint, devices=devices, dtype=dtype)
        if why:
            raise ConfigurationError(f"backend 'onnxruntime' cannot do this: {why}")


def chosen_backend(
    asked: str, checkpoint: Checkpoint, *, devices: Sequence[str], dtype: str
) -> str:
    """Return ``torch`` or ``onnxruntime``: what was asked for, or what suits; reads no weights.

    ``auto`` is ONNX Runtime for int8, and where a model comes to float32 on a CPU, where it is the
    faster (decision 0013), and torch for everything else: GPUs, bfloat16, what has no graph, and
    models with other kinds of vectors. What is not installed does not count. A table of words needs
    ``numpy`` alone.
    """
    if checkpoint.card.architecture == "static":
        return "numpy"
    if asked != "auto":
        return asked
    if dtype == "int8" or not _installed("torch"):
        return "onnxruntime"
    if not _installed("onnxruntime", "onnx") or checkpoint.card.kinds != ("dense",):
        return "torch"
    if why_torch(checkpoint, devices=devices, dtype=dtype) or not _float32_on_cpu(devices, dtype):
        return "torch"
    return "onnxruntime"


def _float32_on_cpu(devices: Sequence[str], dtype: str) -> bool:
    """Whether what ONNX Runtime could do is float32 on a CPU in torch too.

    torch is asked, which takes its import, only where nothing else knows.
    """
    known = dtype == "float32" or multiplies_bfloat16()
    if known is None or ("auto" in devices and may_have_gpu()):
        places = [place(device, dtype) for device in devices]
        return all(at.on_cpu and at.name == "float32" for at in places)
    return dtype == "float32" or not known


def tokenizer_beside(checkpoint: Checkpoint, *, on_host: bool) -> InputTokenizer:
    """Read a checkpoint's tokenizer.

    Args:
        checkpoint: The model.
        on_host: Whether it embeds on the processor that tokenizes.

    Raises:
        CheckpointError: If tokenizer.json is damaged or does not suit the model.
    """
    from nimbed.local.tokenizer import TextTokenizer, read_tokenizer

    tokenizer = read_tokenizer(checkpoint)
    if isinstance(tokenizer, TextTokenizer) and not on_host:
        tokenizer.few = _FEW_BESIDE_GPU
    return tokenizer


class ModelTokens:
    """Counts tokens as a checkpoint's model reads them; weights are not needed.

    A :class:`nimbed.chunks.TokenCounter`.

    Raises:
        MissingExtraError: If tokenizers is not installed.
        CheckpointError: If tokenizer.json is damaged or does not suit the model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        try:
            from nimbed.local.tokenizer import read_tokenizer
        except ImportError as error:
            raise missing_extra("local", needs=error.name or "tokenizers") from error
        self._card = checkpoint.card
        self.tokenizer = read_tokenizer(checkpoint)

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest text, prompt and special tokens included."""
        return self.tokenizer.max_tokens

    def count_tokens(self, texts: Sequence[str], *, input_type: InputType) -> list[int]:
        """Return the tokens of each text, prompt and special tokens included, however many."""
        return self.tokenizer.count(texts, prompt=self._card.prompt(input_type))

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return where the tokens of each text alone begin and end; see TextTokenizer.spans."""
        return self.tokenizer.spans(texts)


def read_model(
    backend: str, checkpoint: Checkpoint, *, devices: Sequence[str], dtype: str
) -> Loaded:
    """Read a checkpoint's tokenizer and weights into a backend.

    Args:
        backend: As it was asked for.
        checkpoint: The model.
        devices: Where it runs, a replica each.
        dtype: The arithmetic, as it was asked for.

    Raises:
        MissingExtraError: If the backend is not installed.
        CheckpointError: If the files are damaged.
        ConfigurationError: If the device does not exist.
    """
    chosen = chosen_backend(backend, checkpoint, devices=devices, dtype=dtype)
    if chosen == "numpy":
        return _read_static(checkpoint, devices)
    if chosen == "onnxruntime":
        return _read_onnx(backend, checkpoint, devices, dtype)
    try:
        from nimbed.local.engine import build_engine

        places = [place(device, dtype) for device in devices]
        tokenizer = tokenizer_beside(checkpoint, on_host=places[0].on_cpu)
    except ImportError as error:
        raise missing_extra("local", needs=error.name or "torch") from error
    engines = tuple(build_engine(checkpoint, at) for at in places)
    return Loaded(tokenizer, engines, functools.partial(release, {at.device for at in places}))


def _check_static(checkpoint: Checkpoint, backend: str, devices: Sequence[str], dtype: str) -> None:
    asked = {"backend": backend, "dtype": "auto" if dtype == "float32" else dtype}
    asked["device"] = next((device for device in devices if device not in ("auto", "cpu")), "auto")
    for name, value in asked.items():
        if value != "auto":
            raise ConfigurationError(
                f"{checkpoint.card.id} is a table of words, whose means numpy takes on the CPU in "
                f"float32; leave out {name}={value!r}"
            )


def _read_static(checkpoint: Checkpoint, devices: Sequence[str]) -> Loaded:
    try:
        from nimbed.local.static import static_engine
        from nimbed.local.tokenizer import read_tokenizer

        tokenizer = read_tokenizer(checkpoint)
    except ImportError as error:
        raise missing_extra("light", needs=error.name or "tokenizers") from error
    return Loaded(tokenizer, tuple(static_engine(checkpoint) for _ in devices), lambda: None)


def _read_onnx(backend: str, checkpoint: Checkpoint, devices: Sequence[str], dtype: str) -> Loaded:
    why = why_torch(checkpoint, devices=devices, dtype=dtype)
    if why:
        raise MissingExtraError(f"{why}; run: {install_line('local')} {_TORCH_ALONE}")
    try:
        from nimbed.local.onnx.session import OnnxEngine
        from nimbed.local.tokenizer import read_tokenizer

        tokenizer = read_tokenizer(checkpoint)
    except ImportError as error:
        if backend == "onnxruntime" or dtype == "int8":
            raise missing_extra("light", needs=error.name or "onnxruntime") from error
        raise MissingExtraError(
            f"a local model needs a backend, and {error.name} is not installed; run: "
            f"{install_line('light')} (ONNX Runtime: encoders on the CPU, in float32) or "
            f"{install_line('local')} {_TORCH_ALONE}"
        ) from error
    engines = tuple(OnnxEngine(checkpoint, int8=dtype == "int8") for _ in devices)
    return Loaded(tokenizer, engines, lambda: None)


def why_torch(checkpoint: Checkpoint, *, devices: Sequence[str], dtype: str) -> str:
    """Return why ONNX Runtime does not run a model so, or an empty string."""
    card = checkpoint.card
    if card.architecture not in _GRAPHS:
        return (
            f"{card.id} is of the architecture {card.architecture}, which runs in torch alone "
            f"(ONNX Runtime runs {', '.join(_GRAPHS)})"
        )
    if checkpoint.pipeline.layers is not None:
        return f"{card.id} pools several layers (WeightedLayerPooling), which runs in torch alone"
    if "dense" not in card.kinds:
        return f"{card.id} gives {' and '.join(card.kinds)} vectors alone, which need torch"
    config = checkpoint.config
    mixed = config.get("num_experts") not in (None, 0, 1)
    if card.architecture == "nomic_bert" and (mixed or config.get("activation_function") == "gelu"):
        return f"{card.id} divides its tokens among experts, which run in torch alone"
    scaled = scaled_rotation(config) if card.architecture in _ROTATED else None
    if scaled:
        return f"{card.id} has {scaled!r} rotary positions, which run in torch alone"
    if dtype not in ("auto", "float32", "int8"):
        return f"dtype {dtype!r} needs torch; ONNX Runtime computes in float32 or int8 here"
    beyond = [device for device in devices if device not in ("auto", "cpu")]
    if beyond:
        return f"device {beyond[0]!r} needs torch; ONNX Runtime runs on the CPU here"
    modules = [path.parent for path in checkpoint.pipeline.module_weights]
    for folder in (checkpoint.folder, *modules):
        pickled = weight_files(folder, "pytorch_model.bin")
        if pickled and not weight_files(folder, "model.safetensors"):
            return (
                f"{folder} holds its weights as pytorch_model.bin, which torch alone reads; a "
                f"checkpoint with model.safetensors needs no torch"
            )
    return ""


@functools.cache
def _installed(*modules: str) -> bool:
    try:
        return all(find_spec(module) is not None for module in modules)
    except (ImportError, ValueError):  # somebody forbids it
        return False


def check_context(card: ModelCard, backend: str) -> None:
    """Refuse late chunking where it cannot be done.

    Raises:
        ConfigurationError: If the model does not pool by the mean alone, reads images, or is a
            table of words.
    """
    why = None
    if card.pooling != "mean":
        how = card.pooling
        why = f"it pools by {how if isinstance(how, str) else ' and '.join(how)}"
    elif card.modalities != ("text",):
        why = "it reads images"
    elif backend == "numpy":
        why = "it is a table of words, which have no states"
    if why is not None:
        raise ConfigurationError(
            f"late chunking takes the mean of the states of a chunk's tokens, which {card.id} "
            f"cannot give: {why}"
        )
