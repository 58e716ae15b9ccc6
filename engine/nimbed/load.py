"""``nimbed.load``: an embedder for a model, in this process or on a server.

The only place that decides which arguments belong to a local model and which to a server. For
adapters, whose settings are assigned, copied and pickled, :class:`LazyEmbedder` loads at the first
call. ``nimbed.load`` as an attribute is the function: take the rest with ``from nimbed.load
import ...``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from nimbed.cards import ModelCard
from nimbed.chunks import ChunkMode, LateSplitter, Splitter, TokenCounter
from nimbed.embedder import Backend, Embedder
from nimbed.errors import BackendError, ConfigurationError, MissingExtraError, UnknownModelError
from nimbed.spec import InputType, check_literal

if TYPE_CHECKING:
    from nimbed.remote.address import ExtraHeaders

__all__ = [
    "Backend",
    "Dtype",
    "LazyEmbedder",
    "LoadOptions",
    "chunk_splitter",
    "explain_arguments",
    "key_for",
    "load",
    "refuse_to_pickle",
    "shown_headers",
    "token_counter",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float8", "int8"]

_LOCAL = ("card", "prompt_name", "device", "devices", "dtype", "backend", "revision", "cache_dir")
_REMOTE = ("api_key", "headers", "dialect", "concurrency", "batch_size", "timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The arguments of :func:`load`, which describes them, and those of a remote client.

    Attributes:
        concurrency: Requests in flight at most; 32 if None.
        batch_size: Texts a request at most; as many as the server takes if None.
        timeout: Seconds that one request may take; 60 if None.

    Raises:
        ConfigurationError: If an argument is given that this kind of model would ignore.
    """

    model: str | ModelCard | None = None
    card: str | ModelCard | None = None
    prompt_name: str | None = None
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] | ExtraHeaders | None = field(default=None, repr=False)
    device: str = "auto"
    devices: tuple[str, ...] | None = None
    dtype: Dtype = "auto"
    backend: Backend = "auto"
    revision: str | None = None
    dialect: str = "auto"
    cache_dir: str | Path | None = None
    concurrency: int | None = None
    batch_size: int | None = None
    timeout: float | None = None

    @classmethod
    def of(cls, settings: Any, **others: Any) -> LoadOptions:
        """Return what an adapter's settings hold under these names, with keys and headers shown.

        Args:
            settings: An object that has some of the attributes; a key and headers as pydantic's
                secrets.
            others: Those that it holds under another name.
        """
        found = {
            each.name: getattr(settings, each.name)
            for each in fields(cls)
            if hasattr(settings, each.name)
        }
        if found["api_key"] is not None:
            found["api_key"] = found["api_key"].get_secret_value()
        found["headers"] = shown_headers(found["headers"])
        return cls(**{**found, **others})

    def __post_init__(self) -> None:
        """Refuse what this kind of model would ignore, and hide the values of headers."""
        if self.headers is not None:
            from nimbed.remote.address import ExtraHeaders

            if not isinstance(self.headers, ExtraHeaders):
                object.__setattr__(self, "headers", ExtraHeaders(self.headers))
        defaults = {each.name: each.default for each in fields(self)}
        inapplicable = _REMOTE if self.base_url is None else _LOCAL
        given = [name for name in inapplicable if getattr(self, name) != defaults[name]]
        if given and self.base_url is None:
            raise ConfigurationError(
                f"{', '.join(given)} can only be used with a server; also pass base_url=..."
            )
        if given:
            raise ConfigurationError(
                f"{', '.join(given)} can only be used with a local model, and base_url was given; "
                f"leave out one or the other"
            )

    def load(self) -> Embedder:
        """Return a new embedder; raises as :func:`load` does."""
        if self.base_url is not None:
            from nimbed.remote.embedder import RemoteEmbedder

            return RemoteEmbedder(
                self.model,
                base_url=self.base_url,
                api_key=self.api_key,
                headers=self.headers,
                dialect=self.dialect,
                concurrency=32 if self.concurrency is None else self.concurrency,
                batch_size=self.batch_size,
                timeout=60.0 if self.timeout is None else self.timeout,
            )
        if isinstance(self.model, str) and self.model.startswith(("http://", "https://")):
            raise UnknownModelError(f"{self.model!r} is an address; pass it as base_url=...")
        from nimbed.local.router import local_embedder

        return local_embedder(
            self.model,
            card=self.card,
            prompt_name=self.prompt_name,
            device=self.device,
            devices=self.devices,
            dtype=self.dtype,
            backend=self.backend,
            revision=self.revision,
            cache_dir=self.cache_dir,
        )


def load(
    model: str | ModelCard | None = None,
    *,
    card: str | ModelCard | None = None,
    prompt_name: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    device: str = "auto",
    devices: Sequence[str] | None = None,
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    revision: str | None = None,
    dialect: str = "auto",
    cache_dir: str | Path | None = None,
) -> Embedder:
    """Return an embedder for a model, local or remote.

    The files of a local model are located here; its weights are read at the first ``embed`` or
    ``warmup``.

    Args:
        model: A folder, a catalogue name or a hub id; None for the default model (MiniLM). A
            :class:`nimbed.ModelCard` (say, ``dataclasses.replace`` of a catalogue card) overrides
            prompts and pooling.
        card: What a folder holds: a catalogued model's name, or its card. The folder is checked
            against it, and then has its prompts, sizes and fingerprint.
        prompt_name: One of the model's prompts for tasks other than search, such as
            ``clustering``, to be put before every text instead of its role's; empty for none. The
            card's ``task_prompts`` has their names. Such vectors are a space of their own.
        base_url: Address of a server that runs the model.
        api_key: The server's key; None takes it from the environment.
        headers: Headers that a gateway before the server wants, such as ``{"x-tenant": "a"}``.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        devices: Several devices, one replica each; instead of ``device``.
        dtype: Arithmetic of a local model; ``auto`` is bfloat16 where the device is fast at it.
            ``float8`` multiplies in float8 (decoders alone, on GPUs from Ada and Hopper on),
            ``int8`` the products of MLPs in bytes (encoders alone, by ONNX Runtime on a CPU: on
            one thread, or with VNNI, a question in 0.65 to 0.9 of float32's time, MiniLM at a mean
            cosine of 0.9997 to it).
        backend: What runs a local model: ``torch``, or ``onnxruntime``, which runs encoders on the
            CPU in float32 or int8 and takes a tenth of the space. ``auto`` is ONNX Runtime for
            int8, and where a model that it runs comes to float32 on a CPU, since it is faster
            there; torch for everything else, or whichever is installed. The vectors agree to 2e-6
            in float32 and have one fingerprint.
        revision: Branch, tag or commit on the hub; part of the vectors' fingerprint.
        dialect: The server's dialect; ``auto`` infers it from the address and the answers.
        cache_dir: Folder of the Hugging Face cache, if not the usual one.

    Raises:
        UnknownModelError: If no folder, cache or hub holds the model.
        MissingExtraError: If the package that runs it is not installed.
        ConfigurationError: If the arguments contradict each other.
    """
    return LoadOptions(
        model=model,
        card=card,
        prompt_name=prompt_name,
        base_url=base_url,
        api_key=api_key,
        headers=headers,
        device=device,
        devices=None if devices is None else tuple(devices),
        dtype=dtype,
        backend=backend,
        revision=revision,
        dialect=dialect,
        cache_dir=cache_dir,
    ).load()


class LazyEmbedder:
    """The embedder of the options that were asked for last, loaded at the first call and kept.

    Safe in threads. A copy shares what is loaded until one of the two asks for other options; a
    pickle holds neither weights nor connections nor keys.

    Args:
        given: An existing embedder, returned whatever the options are.
    """

    def __init__(self, given: Embedder | None = None) -> None:
        self._given = given
        self._loaded: tuple[LoadOptions, Embedder] | None = None
        self._lock = threading.Lock()

    def get(self, options: LoadOptions) -> Embedder:
        """Return the embedder of these options; raises as :func:`load` does if it loads one."""
        if self._given is not None:
            return self._given
        loaded = self._loaded
        if loaded is None or loaded[0] != options:
            with self._lock:
                loaded = self._loaded
                if loaded is None or loaded[0] != options:
                    loaded = self._loaded = (options, options.load())
        return loaded[1]

    def __copy__(self) -> Self:
        copied = type(self)(self._given)
        copied._loaded = self._loaded
        return copied

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Callable[..., LazyEmbedder], tuple[Embedder | None]]:
        return type(self), (self._given,)


def key_for(base_url: str, api_key: str | None) -> str | None:
    """Return the key that a server would be sent: the given one, else the environment's.

    Raises:
        ConfigurationError: If the address or the key cannot be used.
    """
    from nimbed.remote.address import Address, find_key

    found = find_key(Address.parse(base_url), api_key, os.environ)
    return found.reveal() if found else None


# Arguments of NVIDIA's, OpenAI's and Hugging Face's adapters: our word, or a sentence.
_FOREIGN = {
    **dict.fromkeys(("nvidia_api_key", "openai_api_key"), "api_key"),
    **dict.fromkeys(("api_base", "openai_api_base"), "base_url"),
    **dict.fromkeys(("max_batch_size", "chunk_size"), "batch_size"),
    **dict.fromkeys(("show_progress", "show_progress_bar"), "progress"),
    **dict.fromkeys(("default_headers", "organization"), "headers"),
    **dict.fromkeys(("deployment", "model_name"), "model"),
    **dict.fromkeys(
        ("trucate", "max_length", "check_embedding_ctx_length", "embedding_ctx_length"), "truncate"
    ),
    "request_timeout": "timeout",
    "openai_api_type": "dialect",
    "cache_folder": "cache_dir",
    "model_kwargs": "every option has an argument of its own, such as device, dtype and revision",
    "encode_kwargs": "every option has an argument of its own: embedding_type, dimensions; float "
    "vectors are normalised where the model says so, and batches are packed by tokens",
    "additional_kwargs": "every field of a request has an argument of its own",
    "trust_remote_code": "no code of a checkpoint is ever run",
    **dict.fromkeys(
        ("normalize", "pooling", "tokenizer", "tokenizer_name"), "the model's own files say so"
    ),
    **dict.fromkeys(
        ("query_encode_kwargs", "query_instruction", "text_instruction"),
        "the model's own prompts are used; for others, from_embedder(nimbed.load(card))",
    ),
    **dict.fromkeys(
        ("multi_process", "parallel_process", "target_devices"),
        "use from_embedder(nimbed.load(devices=[...]))",
    ),
    **dict.fromkeys(
        ("max_retries", "retry_min_seconds", "retry_max_seconds"),
        "a server is asked up to eight times, at the pace that it asks for; to change it, "
        "from_embedder(RemoteEmbedder(retry=...))",
    ),
    **dict.fromkeys(
        ("tiktoken_enabled", "tiktoken_model_name", "allowed_special", "disallowed_special"),
        "texts are sent, never token ids",
    ),
    **dict.fromkeys(
        ("client", "async_client", "http_client", "http_async_client", "async_http_client"),
        "several adapters can share one embedder, by from_embedder",
    ),
    "reuse_client": "one client serves any number of event loops",
    "mode": "the method decides the role",
    "skip_empty": "a blank text is an error that names its row",
    "api_version": "Azure's own protocol is not spoken",
    "openai_proxy": "set HTTPS_PROXY in the environment",
    "default_query": "an address has no query",
    "usage_telemetry_enabled": "there is no telemetry",
}


def explain_arguments(given: Iterable[str], known: Collection[str]) -> None:
    """Refuse arguments that other adapters have and this one calls otherwise, or has no need of.

    Args:
        given: The arguments that came.
        known: Those that the adapter has; what neither side knows is left to the adapter.

    Raises:
        ConfigurationError: If there are any; it names each, and the cure.
    """
    told = []
    for name in given:
        if name in _FOREIGN and name not in known:
            ours = _FOREIGN[name]
            if ours in known:
                told.append(f"{name} is called {ours} here")
            elif " " in ours:
                told.append(f"there is no {name}: {ours}")
    if told:
        raise ConfigurationError("; ".join(told))


class Hidden(Protocol):
    """A text that shows itself only when it is asked to, as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """Return the text."""
        ...


def shown_headers(headers: Mapping[str, Hidden] | None) -> dict[str, str] | None:
    """Return the headers of an adapter's settings as :func:`load` takes them."""
    if not headers:
        return None
    return {name: value.get_secret_value() for name, value in headers.items()}


def refuse_to_pickle(headers: Mapping[str, Hidden] | None) -> None:
    """Refuse to pickle an adapter that has headers: without them it would not be the same.

    Raises:
        ConfigurationError: If there are any.
    """
    if headers:
        raise ConfigurationError(
            f"headers ({', '.join(headers)}) do not travel in a pickle; make the adapter in the "
            f"process that uses it"
        )


def token_counter(embedder: Embedder, tokenizer: str | None = None) -> TokenCounter:
    """Return what counts tokens as an embedder's model reads them, for :mod:`nimbed.chunks`.

    A server does not count; then the model's tokenizer is looked for here, and on the hub, without
    its weights.

    Args:
        embedder: Whose tokens are counted.
        tokenizer: A folder, a catalogue name or a hub id that holds the tokenizer; None takes
            the embedder itself where it counts, else the name of its model.

    Raises:
        ConfigurationError: If no tokenizer of the model is found.
    """
    if tokenizer is None and isinstance(embedder, TokenCounter):
        return embedder
    from nimbed.local.backends import ModelTokens
    from nimbed.local.checkpoint import read_checkpoint
    from nimbed.local.hub import locate

    name = embedder.card.id if tokenizer is None else tokenizer
    try:
        located = locate(name, weights=False)
        return ModelTokens(read_checkpoint(located, revision=None, override=embedder.card))
    except (MissingExtraError, UnknownModelError, BackendError) as error:
        raise ConfigurationError(
            f"chunks are counted by the model's own tokenizer, and that of {name} was not found "
            f"here: {error}; name a folder that holds its config.json and tokenizer.json"
        ) from error


def chunk_splitter(
    embedder: Embedder,
    *,
    tokens: int,
    overlap: int = 0,
    mode: ChunkMode = "plain",
    input_type: InputType = "passage",
) -> Splitter:
    """Return what splits documents into chunks for an embedder.

    Args:
        embedder: What will embed them.
        tokens: Tokens of a chunk at most, its prompt and the special tokens included.
        overlap: Tokens of a chunk's end that the next one begins with, at most.
        mode: ``plain`` chunks are embedded alone, ``late`` ones with the text around them.
        input_type: What they are embedded as.

    Raises:
        ConfigurationError: If a size cannot be, the model's tokenizer is not at hand, or the
            embedder does not embed chunks with the text around them.
    """
    check_literal("chunk_mode", mode, ChunkMode)
    if mode == "late":
        return LateSplitter(embedder, tokens=tokens, overlap=overlap, input_type=input_type)
    counter = token_counter(embedder)
    return Splitter(counter, tokens=tokens, overlap=overlap, input_type=input_type)
