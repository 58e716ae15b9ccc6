"""What tokenizer_config.json and its neighbours change of tokenizer.json.

transformers reads tokenizer.json, then lets tokenizer_config.json have its way with capitals,
accents and added tokens; sentence-transformers lowers capitals by a key of its own. Where the files
say the same, which is the rule, nothing is changed. Some of its classes take no more than the
vocabulary from tokenizer.json and make the rest themselves: what they would make otherwise is
refused, for then the file says one thing and the class another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nimbed.errors import CheckpointError
from nimbed.local.json_files import FILES, check_keys, read_json

__all__ = [
    "NO_CHANGES",
    "AddedToken",
    "TokenizerChanges",
    "read_tokenizer_changes",
    "read_vocabulary",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TokenizerClass:
    """A class of transformers that makes a tokenizer's parts itself, from the vocabulary.

    Attributes:
        model: What cuts words; a type of tokenizer.json.
        options: Of the model, where tokenizer.json might say otherwise.
        normalizers: Types of normalizers that come to what the class makes.
        splitters: Likewise of pre-tokenizers; one of them at least is there.
        pattern: The expression by which a Split splits, if there is one.
        around: Which special tokens stand before and behind a text; None for tokenizer.json's.
        prefix_space: Whether a space is put before a text where no file says.
        special: Its special tokens where no file names them.
        bare: Whether special tokens lose what the files say of blanks beside them.
    """

    model: str
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    normalizers: tuple[str, ...] = ()
    splitters: tuple[str, ...] = ()
    pattern: str | None = None
    around: tuple[str, str] | None = None
    prefix_space: bool | None = None
    special: Mapping[str, str] = field(default_factory=dict[str, str])
    bare: bool = False


_BERT_SPECIAL = {f"{use}_token": f"[{use.upper()}]" for use in ("cls", "sep", "unk", "pad", "mask")}
_ROBERTA_SPECIAL = {
    **{"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"},
    **{"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
}
# BERT's capitals, accents and Chinese characters are as the configuration says.
_BERT = _TokenizerClass(
    model="WordPiece",
    options={"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    normalizers=("BertNormalizer",),
    splitters=("BertPreTokenizer",),
    around=("cls_token", "sep_token"),
    special=_BERT_SPECIAL,
)
# Spaces are gathered in several ways, which come to the same.
_XLM_ROBERTA = _TokenizerClass(
    model="Unigram",
    normalizers=("Precompiled", "Replace", "Strip"),
    splitters=("Metaspace", "WhitespaceSplit"),
    around=("bos_token", "eos_token"),
    prefix_space=True,
    special=_ROBERTA_SPECIAL,
)
_CLASSES = {
    "BertTokenizer": _BERT,
    "CamembertTokenizer": _XLM_ROBERTA,
    "DistilBertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "GemmaTokenizer": _TokenizerClass(
        model="BPE",
        normalizers=("Replace",),
        splitters=("Split", "Metaspace"),
        special={f"{use}_token": f"<{use}>" for use in ("bos", "eos", "unk", "pad", "mask")},
    ),
    "LlamaTokenizer": _TokenizerClass(
        model="BPE",
        normalizers=("Prepend", "Replace"),
        splitters=("Metaspace",),
        special={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "MPNetTokenizer": dataclasses.replace(
        _BERT, special={**_ROBERTA_SPECIAL, "unk_token": "[UNK]"}
    ),
    "Qwen2Tokenizer": _TokenizerClass(
        model="BPE",
        options={"ignore_merges": False},
        normalizers=("NFC",),
        splitters=("Split", "ByteLevel"),
        pattern=(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        prefix_space=False,
        special=dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
        bare=True,
    ),
    "RobertaTokenizer": _TokenizerClass(
        model="BPE",
        options={"ignore_merges": False},
        splitters=("ByteLevel",),
        around=("cls_token", "sep_token"),
        prefix_space=False,
        special=_ROBERTA_SPECIAL,
    ),
    "XLMRobertaTokenizer": _XLM_ROBERTA,
}

# The class of a type of models where no file names one.
_CLASS_OF_TYPE = {
    **dict.fromkeys(("bert", "distilbert", "nomic_bert"), "BertTokenizer"),
    **dict.fromkeys(("gte", "jina_embeddings_v3", "xlm-roberta"), "XLMRobertaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen3"), "Qwen2Tokenizer"),
    "camembert": "CamembertTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
}

# Types whose published files name wrong classes: transformers reads tokenizer.json whole, or takes
# the class of the type, whatever they name.
_READ_WHOLE = ("mistral", "ministral3", "mistral3", "modernbert")
_CLASS_OF_TYPE_ALONE = ("qwen2",)

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A word that is one token wherever it stands; as in the ``tokenizers`` library."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerChanges:
    """What is applied to the tokenizer of tokenizer.json; nothing if it is false.

    Attributes:
        bert_normalizer: Arguments of the ``BertNormalizer`` that replaces the normalizer, by name.
        lowercase: Whether capitals are lowered before everything else.
        added: Tokens that are added, or replaced with other flags.
    """

    bert_normalizer: tuple[tuple[str, bool | None], ...] = ()
    lowercase: bool = False
    added: tuple[AddedToken, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.bert_normalizer or self.lowercase or self.added)


#: Of a folder whose files say the same.
NO_CHANGES = TokenizerChanges()


def read_tokenizer_changes(
    folder: Path, *, model_type: str, do_lower_case: bool
) -> TokenizerChanges:
    """Compare the files of a tokenizer.

    Args:
        folder: With tokenizer.json, and tokenizer_config.json if there is one.
        model_type: Of config.json, which chooses the tokenizer's class where nothing else does.
        do_lower_case: Whether sentence-transformers lowers capitals.

    Raises:
        CheckpointError: If a key is not known, or the files contradict each other in a way that
            cannot be followed.
    """
    where = folder / "tokenizer_config.json"
    config, tokenizer = read_json(where), read_json(folder / "tokenizer.json")
    check_keys(config, where, FILES["tokenizer_config.json"])
    try:
        return _compared(config, tokenizer, folder, model_type, do_lower_case)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where} or tokenizer.json is malformed: {error!r}") from error


def _compared(
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    folder: Path,
    model_type: str,
    do_lower_case: bool,
) -> TokenizerChanges:
    where = folder / "tokenizer_config.json"
    if (tokenizer.get("model") or {}).get("dropout"):
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} gives dropout {tokenizer['model']['dropout']!r}: it cuts "
            f"words at random, and a text would have another vector each time; set it to null"
        )
    legacy = _special_tokens_map(folder)
    named = _class_name(config, tokenizer, folder, model_type)
    made = _CLASSES.get(named)
    if made is not None:
        _check_class(named, made, config, legacy, tokenizer, folder, model_type)
    prefix = _prefix_space(tokenizer)
    asked = config.get("add_prefix_space", made.prefix_space if made else None)
    if prefix is not None and asked not in (None, prefix):
        raise CheckpointError(
            f"{where} gives add_prefix_space {asked!r}, and tokenizer.json {prefix!r}; save the "
            f"tokenizer anew with transformers, or take the key out"
        )
    normalizer = tokenizer.get("normalizer") or {}
    bert = _bert_normalizer(config, normalizer) if made and made.model == "WordPiece" else ()
    lowers = dict(bert)["lowercase"] if bert else _lowers(normalizer)
    return TokenizerChanges(
        bert_normalizer=bert,
        lowercase=do_lower_case and not lowers,
        added=tuple(_added(config, legacy, tokenizer, folder, made)),
    )


def _class_name(
    config: Mapping[str, Any], tokenizer: Mapping[str, Any], folder: Path, model_type: str
) -> str:
    """Return which class of transformers reads a tokenizer; empty where it reads the file whole."""
    own = _CLASS_OF_TYPE.get(model_type, "")
    if model_type in _READ_WHOLE or model_type in _CLASS_OF_TYPE_ALONE:
        return own
    said = config.get("tokenizer_class") or read_json(folder / "config.json").get("tokenizer_class")
    named = own if said is None else str(said).removesuffix("Fast")
    byte_level = "ByteLevel" in {part.get("type") for part in _parts(tokenizer, "pre_tokenizer")}
    return "" if named == "LlamaTokenizer" and byte_level else named


def _check_class(
    named: str,
    made: _TokenizerClass,
    config: Mapping[str, Any],
    legacy: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    folder: Path,
    model_type: str,
) -> None:
    """Refuse a tokenizer.json that is not what its class makes of the vocabulary."""
    model = tokenizer.get("model") or {}
    splitters = _parts(tokenizer, "pre_tokenizer")
    normalizers = [
        part.get("type") if _blanks(part) else f"{part['type']} of {part.get('pattern')}"
        for part in _parts(tokenizer, "normalizer")
    ]
    types = [part.get("type") for part in splitters]
    kinds = (
        ("model", [model.get("type", made.model)], (made.model,)),  # which older files leave out
        ("normalizer", normalizers, made.normalizers),
        ("pre_tokenizer", types, made.splitters),
    )
    differs = {
        part: ", ".join(map(str, found))
        for part, found, allowed in kinds
        if not set(found) <= set(allowed)
    }
    if made.around is not None:  # the others take what is before and behind from the file
        if not splitters or (made.prefix_space and _prefix_space(tokenizer) is None):
            differs.setdefault("pre_tokenizer", ", ".join(map(str, types)) or "none")
        names = [_named_token(config, legacy, key, made) for key in made.around]
        found = _around(tokenizer)
        vocabulary = _vocabulary(tokenizer)
        if found != [(name, vocabulary.get(str(name))) for name in names]:
            around = " and ".join(f"{name} ({number})" for name, number in found) or "nothing"
            differs["post_processor"] = f"{around} around a text"
    if model.get("type", made.model) == made.model:
        for option, value in made.options.items():
            if model.get(option, value) != value:
                differs[option] = repr(model[option])
        unknown = model.get("unk_token")
        if made.model == "WordPiece" and unknown != _named_token(config, legacy, "unk_token", made):
            differs["unk_token"] = repr(unknown)
    patterns = [part.get("pattern") for part in splitters if part.get("type") == "Split"]
    if made.pattern is not None and patterns != [{"Regex": made.pattern}]:
        differs["pre_tokenizer"] = "another expression to split by"
    if differs:
        said = "; ".join(f"{part}: {found}" for part, found in differs.items())
        cure = (
            ", or write tokenizer_class PreTrainedTokenizerFast into tokenizer_config.json to have "
            "tokenizer.json followed as it is"
        )
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} is not what transformers' {named} makes of its "
            f"vocabulary ({said}), and releases of transformers follow one or the other. Save the "
            f"tokenizer anew with the release that the model was trained with"
            f"{cure if model_type not in _CLASS_OF_TYPE_ALONE else ''}"
        )


def _blanks(normalizer: Mapping[str, Any]) -> bool:
    """Whether a normalizer replaces nothing, or nothing but spaces."""
    pattern = (normalizer.get("pattern") or {}).values()
    return normalizer.get("type") != "Replace" or all(
        not set(each) - set(" +{2,}") for each in pattern
    )


def _named_token(
    config: Mapping[str, Any], legacy: Mapping[str, Any], key: str, made: _TokenizerClass
) -> str | None:
    """Return the special token that the files name, or the one that a class has by itself."""
    files = (config, {} if "added_tokens_decoder" in config else legacy)
    token: Any = made.special.get(key)
    for file in files:  # the last has the last word
        token = file.get(key, token)
    return token.get("content") if isinstance(token, dict) else token


def _special_tokens_map(folder: Path) -> dict[str, Any]:
    where = folder / "special_tokens_map.json"
    legacy = read_json(where)
    check_keys(legacy, where, FILES["special_tokens_map.json"])
    return legacy


def _around(tokenizer: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the special tokens that a post-processor puts before and behind a text, and ids."""
    for part in _parts(tokenizer, "post_processor"):
        if part.get("type") == "TemplateProcessing":
            pieces = [piece.get("SpecialToken", {}).get("id") for piece in part.get("single") or ()]
            ids = part.get("special_tokens") or {}
            return [(piece, ids[piece]["ids"][0]) for piece in pieces if piece is not None]
        if part.get("type") in ("BertProcessing", "RobertaProcessing"):
            return [(part[key][0], part[key][1]) for key in ("cls", "sep")]
    return []


def _parts(tokenizer: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return the parts of a normalizer or the like, those of its sequences one by one."""
    parts: list[Mapping[str, Any]] = []
    left = [tokenizer.get(name) or {}]
    while left:
        part = left.pop(0)
        sequences = ("normalizers", "pretokenizers", "processors")
        inner = [part[key] for key in sequences if isinstance(part.get(key), list)]
        if inner:
            left = [*inner[0], *left]
        elif part:
            parts.append(part)
    return parts


def _bert_normalizer(
    config: Mapping[str, Any], normalizer: Mapping[str, Any]
) -> tuple[tuple[str, bool | None], ...]:
    """Return the normalizer that the configuration makes, or nothing if it is the file's own."""
    wanted = {
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True) is not False,
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case") is not False,
    }
    parts = _parts({"normalizer": normalizer}, "normalizer")
    same = len(parts) == 1 and all(parts[0].get(name) == value for name, value in wanted.items())
    return () if same else tuple(wanted.items())


def _added(
    config: Mapping[str, Any],
    legacy: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    folder: Path,
    made: _TokenizerClass | None,
) -> Iterator[AddedToken]:
    """Yield the tokens that tokenizer.json lacks or has with other flags, as transformers does."""
    where = folder / "tokenizer_config.json"
    has: dict[str, dict[str, Any]] = {
        token["content"]: token for token in tokenizer.get("added_tokens") or ()
    }
    listed = config.get("added_tokens_decoder")
    named = {**(made.special if made else {}), **config, **(legacy if listed is None else {})}
    padding = tokenizer.get("padding") or {}
    if padding.get("pad_token") and "pad_token" not in named:
        named["pad_token"] = padding["pad_token"]
    special = list(_special(named))
    for _, token in sorted((listed or {}).items(), key=lambda item: int(item[0])):
        own = has.get(token["content"], {})
        if any(bool(token.get(flag, False)) != own.get(flag) for flag in _FLAGS):
            flags = {flag: bool(token.get(flag, False)) for flag in _FLAGS}
            yield AddedToken(content=token["content"], **flags)
    contents = {token["content"] for token in (listed or {}).values()}
    lost = sorted(set(has) - contents - {token.content for token in special})
    if listed is not None and made is not None and lost:
        raise CheckpointError(
            f"{where} gives added_tokens_decoder without {lost[0]!r}, which tokenizer.json adds; "
            f"save the tokenizer anew with transformers, or take the key out"
        )
    known = {*has, *contents}
    if listed is None:
        vocabulary = _vocabulary(tokenizer)
        for token in _legacy_tokens(folder, has, special, known):
            if made is not None and token.content not in vocabulary:  # all ids would shift
                raise CheckpointError(
                    f"{folder / 'added_tokens.json'} adds {token.content!r}, which tokenizer.json "
                    f"lacks; save the tokenizer anew with transformers, or delete the file"
                )
            yield token
    for token in special:
        plain = AddedToken(content=token.content)
        own = has.get(token.content, {})
        if made is not None and made.bare and any(own.get(f) != getattr(plain, f) for f in _FLAGS):
            yield plain
        elif token.content not in known:
            known.add(token.content)
            yield token


def _legacy_tokens(
    folder: Path, has: Mapping[str, Mapping[str, Any]], special: list[AddedToken], known: set[str]
) -> Iterator[AddedToken]:
    """Yield what added_tokens.json adds, and note it among what is known."""
    where = folder / "added_tokens.json"
    numbers = {token["id"] for token in has.values()}
    names = {token.content for token in special}
    for content, number in sorted(read_json(where).items(), key=lambda item: int(item[1])):
        if content not in known and number not in numbers:
            known.add(content)
            yield AddedToken(
                content=content, normalized=content not in names, special=content in names
            )


def _special(named: Mapping[str, Any]) -> Iterator[AddedToken]:
    """Yield the special tokens of a configuration, in the order in which they get their ids."""
    usual = [f"{use}_token" for use in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    others = [key for key in named if key.endswith("_token") and key not in usual]
    for key in (*usual, *others):
        yield from _special_token(named.get(key))
    several: Any = named.get("extra_special_tokens") or named.get("additional_special_tokens") or ()
    for token in several.values() if isinstance(several, dict) else several:
        yield from _special_token(token)


def _special_token(token: Any) -> Iterator[AddedToken]:
    """Yield the token that a file names, if it names one: there are switches by such names, too."""
    if isinstance(token, str):
        yield AddedToken(content=token)
    elif isinstance(token, dict):
        flags = {flag: bool(token.get(flag, False)) for flag in _FLAGS[:-1]}
        yield AddedToken(content=token["content"], **flags)


def _lowers(normalizer: Any) -> bool:
    """Whether a normalizer of a tokenizer.json lowers capitals."""
    if not isinstance(normalizer, dict):
        return False
    parts = normalizer.get("normalizers") or []
    lowering = normalizer.get("type") == "Lowercase" or normalizer.get("lowercase") is True
    return lowering or any(map(_lowers, parts))


def _prefix_space(tokenizer: Mapping[str, Any]) -> bool | None:
    """Return whether a tokenizer puts a space before a text; None if it does not say."""
    for part in _parts(tokenizer, "pre_tokenizer"):
        if part.get("type") == "ByteLevel":
            return part.get("add_prefix_space") is True
        if part.get("type") == "Metaspace":
            scheme = part.get("prepend_scheme")
            return part.get("add_prefix_space") is True if scheme is None else scheme == "always"
    return None


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Return the tokens of tokenizer.json with their ids.

    Raises:
        CheckpointError: If the file is missing or malformed.
    """
    where = folder / "tokenizer.json"
    tokenizer = read_json(where, required=True)
    try:
        return _vocabulary(tokenizer)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where} holds no vocabulary: {error!r}") from error


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    words = tokenizer["model"]["vocab"]
    if isinstance(words, list):  # of a Unigram model, with a score each
        words = {word: number for number, (word, _) in enumerate(words)}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
    return {str(word): int(number) for word, number in {**words, **added}.items()}
