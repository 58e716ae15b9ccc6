"""What tokenizer_config.json and its neighbours change of tokenizer.json.

transformers reads tokenizer.json, then lets tokenizer_config.json have its way with capitals,
accents and added tokens; sentence-transformers lowers capitals by a key of its own. Where the files
say the same, which is the rule, nothing is changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimbed.errors import CheckpointError
from nimbed.local.json_files import FILES, check_keys, read_json

__all__ = [
    "NO_CHANGES",
    "AddedToken",
    "TokenizerChanges",
    "read_special_ids",
    "read_special_token",
    "read_tokenizer_changes",
    "read_vocabulary",
    "vocabulary_hash",
]

# Classes that make BERT's normalizer anew from the configuration, and the types whose default they
# are. Their capitals are lowered unless the configuration says otherwise.
_BERTS = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer", "ElectraTokenizer")
_OF_TYPE = ("bert", "distilbert", "mpnet")

# Tokens that say nothing of a text, and what they are called where no file names them.
_MEANINGLESS = {
    "cls_token": ("<s>", "[CLS]"),
    "eos_token": ("</s>",),
    "pad_token": ("<pad>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
}
_OTHERS = {"sep_token": ("</s>", "[SEP]"), "mask_token": ("<mask>", "[MASK]")}
_USUAL = _MEANINGLESS | _OTHERS

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
    prefix = _prefix_space(tokenizer)
    if prefix is not None and config.get("add_prefix_space") not in (None, prefix):
        raise CheckpointError(
            f"{where} gives add_prefix_space {config['add_prefix_space']!r}, and tokenizer.json "
            f"{prefix!r}; save the tokenizer anew with transformers, or take the key out"
        )
    normalizer = tokenizer.get("normalizer") or {}
    bert = _bert_normalizer(config, normalizer, where, model_type)
    lowers = dict(bert)["lowercase"] if bert else _lowers(normalizer)
    return TokenizerChanges(
        bert_normalizer=bert,
        lowercase=do_lower_case and not lowers,
        added=tuple(_added(config, tokenizer, folder)),
    )


def _bert_normalizer(
    config: Mapping[str, Any], normalizer: Mapping[str, Any], where: Path, model_type: str
) -> tuple[tuple[str, bool | None], ...]:
    """Return the normalizer that the configuration makes, or nothing if it is the file's own."""
    named = config.get("tokenizer_class")
    if named is None:
        made_anew = model_type in _OF_TYPE
    else:
        made_anew = str(named).removesuffix("Fast") in _BERTS
    asked = config.get("do_lower_case")
    if not made_anew or normalizer.get("type", "BertNormalizer") != "BertNormalizer":
        if asked is not None and bool(asked) != _lowers(normalizer) and normalizer:
            keeps = "keeps" if asked else "lowers"
            raise CheckpointError(
                f"{where} gives do_lower_case {asked!r}, but tokenizer.json {keeps} capitals; save "
                f"the tokenizer anew with transformers, or take the key out"
            )
        return ()
    wanted = {
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True) is not False,
        "strip_accents": config.get("strip_accents"),
        "lowercase": asked is not False,
    }
    same = all(normalizer.get(name) == value for name, value in wanted.items())
    return () if same else tuple(wanted.items())


def _added(
    config: Mapping[str, Any], tokenizer: Mapping[str, Any], folder: Path
) -> Iterator[AddedToken]:
    """Yield the tokens that tokenizer.json lacks or has with other flags, as transformers does."""
    has: dict[str, dict[str, Any]] = {
        token["content"]: token for token in tokenizer.get("added_tokens") or ()
    }
    listed = config.get("added_tokens_decoder") or {}
    legacy = read_json(folder / "special_tokens_map.json")
    check_keys(legacy, folder / "special_tokens_map.json", FILES["special_tokens_map.json"])
    named = config if listed else {**config, **legacy}
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        own = has.get(token["content"], {})
        if any(bool(token.get(flag, False)) != own.get(flag) for flag in _FLAGS):
            flags = {flag: bool(token.get(flag, False)) for flag in _FLAGS}
            yield AddedToken(content=token["content"], **flags)
    known = {*has, *(token["content"] for token in listed.values())}
    for key, value in named.items():
        several = key in ("additional_special_tokens", "extra_special_tokens")
        if not key.endswith("_token") and not several:
            continue
        for token in value if isinstance(value, list) else [value]:
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str) and content not in known:
                known.add(content)
                yield AddedToken(content=content)


def _lowers(normalizer: Any) -> bool:
    """Whether a normalizer of a tokenizer.json lowers capitals."""
    if not isinstance(normalizer, dict):
        return False
    parts = normalizer.get("normalizers") or []
    lowering = normalizer.get("type") == "Lowercase" or normalizer.get("lowercase") is True
    return lowering or any(map(_lowers, parts))


def _prefix_space(tokenizer: Mapping[str, Any]) -> bool | None:
    """Return whether a byte-level tokenizer puts a space before a text; None for other kinds."""
    first = tokenizer.get("pre_tokenizer") or {}
    for part in first.get("pretokenizers") or [first]:
        if part.get("type") == "ByteLevel":
            return part.get("add_prefix_space") is True
    return None


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Return the tokens of tokenizer.json with their ids.

    Raises:
        CheckpointError: If the file is missing or malformed.
    """
    where = folder / "tokenizer.json"
    tokenizer = read_json(where, required=True)
    try:
        words = tokenizer["model"]["vocab"]
        if isinstance(words, list):  # of a Unigram model, with a score each
            words = {word: number for number, (word, _) in enumerate(words)}
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
        return {str(word): int(number) for word, number in {**words, **added}.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where} holds no vocabulary: {error!r}") from error


def vocabulary_hash(folder: Path) -> str:
    """Return 16 hex digits that name the tokens of tokenizer.json and their ids."""
    tokens = sorted((number, word) for word, number in read_vocabulary(folder).items())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def read_special_ids(folder: Path, *, every: bool = False) -> list[int]:
    """Return the ids of the tokens that begin, end, pad and replace, but stand for no word.

    Those that FlagEmbedding leaves out of bge-m3's sparse vectors.

    Args:
        folder: With tokenizer.json and, if there are any, the files that name special tokens.
        every: Whether tokens that separate and mask are among them, too.
    """
    vocabulary = read_vocabulary(folder)
    keys = _MEANINGLESS | (_OTHERS if every else {})
    names = [name for key in keys for name in _special_names(folder, key)]
    return sorted({vocabulary[name] for name in names if name in vocabulary})


def read_special_token(folder: Path, key: str) -> str | None:
    """Return the special token that a key such as ``mask_token`` names, or the usual one."""
    vocabulary = read_vocabulary(folder)
    return next((name for name in _special_names(folder, key) if name in vocabulary), None)


def _special_names(folder: Path, key: str) -> tuple[str, ...]:
    files = ("tokenizer_config.json", "special_tokens_map.json")
    token = next((said for name in files if (said := read_json(folder / name).get(key))), None)
    content = token.get("content") if isinstance(token, dict) else token
    return _USUAL[key] if content is None else (str(content),)
