"""ColBERT checkpoints: what their files say of markers, lengths, expansion and skipped words.

Three layouts: sentence-transformers' MultiVectorEncoder, PyLate's, and Stanford's own, with
artifact.metadata. All are followed as sentence-transformers 6 reads them, from whose
``multi_vector_encoder`` the defaults come, too.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nimbed.cards import ModelCard
from nimbed.errors import CheckpointError
from nimbed.local.head_config import ColBert, Expansion, TokenPooling, read_special_token
from nimbed.local.json_files import (
    FILES,
    check_keys,
    read_any_json,
    read_json,
    refuse_other_kinds,
    size_of,
)
from nimbed.local.pipeline import (
    DenseModule,
    Pipeline,
    read_config,
    read_dense,
    weights_in,
)
from nimbed.local.sentence_config import Prompts, TransformerFile, listed_modules, read_transformer
from nimbed.local.tokenizer_config import read_vocabulary
from nimbed.spec import InputType

if TYPE_CHECKING:  # which import tokenizers
    from nimbed.local.tokenizer import TextTokenizer, Tokens

__all__ = ["ExpandedRow", "is_colbert", "prefixed", "read_colbert", "tokenizing_as", "within"]

_SENTENCE = "config_sentence_transformers.json"
_STANFORD = "artifact.metadata"

# Keys of config_sentence_transformers.json by which a model of PyLate's is known.
_PYLATE = (
    *("query_length", "document_length", "query_prefix", "document_prefix", "skiplist_words"),
    *("do_query_expansion", "attend_to_expansion_tokens"),
)

# Tokens of a query where a file does not say.
_QUERY_TOKENS = 32

_ROLES: dict[str, InputType] = {"query": "query", "document": "passage"}


def is_colbert(folder: Path) -> bool:
    """Whether a folder holds a model that gives a vector a token and no other."""
    said = read_json(folder / _SENTENCE)
    listed = read_any_json(folder / "modules.json", empty=list)
    if listed:
        types = [str(each.get("type")) for each in listed if isinstance(each, dict)]
        return (
            said.get("model_type") in ("MultiVectorEncoder", "ColBERT")
            or any(key in said for key in _PYLATE)
            or any("multi_vector_encoder" in each or each.startswith("pylate.") for each in types)
        )
    return (folder / _STANFORD).is_file() or _is_stanfords(folder)


def _is_stanfords(folder: Path) -> bool:
    named = read_json(folder / "config.json").get("architectures") or []
    return isinstance(named, list) and "HF_ColBERT" in named


def read_colbert(folder: Path, card: ModelCard | None) -> Pipeline:
    """Follow the files of a ColBERT model's folder.

    Args:
        folder: Of the model.
        card: Its card, if the catalogue or the caller has one.

    Raises:
        CheckpointError: If one is malformed, missing, or asks for what nimbed does not do; the
            message names the file and the key. If the card is of another model.
    """
    refuse_other_kinds(folder)
    if not is_colbert(folder):
        raise CheckpointError(f"{folder} holds no ColBERT model, as {card and card.id} is one")
    stanfords = not (folder / "modules.json").is_file()
    followed = _read_stanfords(folder) if stanfords else _read_modules(folder)
    last = followed.modules[-1] if followed.modules else None
    width = last.outputs if isinstance(last, DenseModule) else None
    if card is not None and (card.kinds, card.dimensions) != (("multi",), width):
        raise CheckpointError(
            f"{folder} holds a ColBERT model of {width} dimensions a token; {card.id} gives "
            f"{' and '.join(card.kinds)} vectors of {card.dimensions}"
        )
    return followed


def _read_modules(folder: Path) -> Pipeline:
    said, where = read_json(folder / _SENTENCE), folder / _SENTENCE
    check_keys(said, where, FILES["MultiVectorEncoder"])
    _check_metric(said, where)
    weights = folder
    modules: list[DenseModule] = []
    mask: Mapping[str, Any] | None = None
    normalized, pooling = False, None
    for place, (kind, path, at) in enumerate(listed_modules(folder)):
        if (kind == "Transformer") != (place == 0):
            raise CheckpointError(f"{at} is {kind}, which nimbed does not run there")
        if kind == "Transformer":
            weights = path
        elif kind == "HierarchicalTokenPooling" and normalized and pooling is None:
            pooling = _read_pooling(path)
        elif normalized:
            raise CheckpointError(f"{at} is {kind} behind Normalize, where nimbed does not run it")
        elif kind == "Dense" and mask is None:
            modules.append(read_dense(path, "token Dense"))
        elif kind == "MultiVectorMask" and mask is None:
            mask, _ = read_config(path, "MultiVectorMask")
        elif kind == "Normalize":
            config, file = read_config(path, "token Normalize")
            if config.get("module_input_name") is None:
                raise CheckpointError(f"{file} normalises no token_embeddings (module_input_name)")
            normalized = True
        else:
            raise CheckpointError(f"{at} is {kind}, which nimbed does not run there")
    network = _network(weights, "token Transformer")
    pylate = any(key in said for key in _PYLATE) or said.get("model_type") == "ColBERT"
    if not pylate and not (normalized and mask is not None):
        raise CheckpointError(
            f"{folder / 'modules.json'} lacks MultiVectorMask or Normalize; nimbed's multi-vectors "
            f"have unit length, and the mask says which tokens have one"
        )
    facts = _of_pylate(said, where, weights) if pylate else ColBert()
    if mask is not None:
        facts = dataclasses.replace(facts, **_skipped(mask, folder / "modules.json"))
    facts = dataclasses.replace(facts, pooling=pooling)
    return Pipeline(
        folder=folder,
        weights=weights,
        modules=tuple(modules),
        max_tokens=network.max_tokens,
        do_lower_case=network.do_lower_case,
        module_weights=tuple(file for module in modules for file in weights_in(module.folder)),
        multi=_of_transformer(facts, network.config, weights),
        dense=False,
    )


def _read_pooling(path: Path) -> TokenPooling:
    config, where = read_config(path, "HierarchicalTokenPooling")
    factor, protected = config.get("pool_factor", 1.0), config.get("num_protected_tokens", 1)
    if not isinstance(factor, int | float) or factor < 1:
        raise CheckpointError(f"{where} gives pool_factor {factor!r}, expected a number from 1 on")
    if not isinstance(protected, int) or protected < 0:
        raise CheckpointError(f"{where} gives num_protected_tokens {protected!r}, expected a count")
    if config.get("normalize_embeddings") is not True:
        raise CheckpointError(
            f"{where} leaves the means of tokens as they are (normalize_embeddings); nimbed's "
            f"multi-vectors have unit length"
        )
    return TokenPooling(factor=factor, protected=protected, roles=_tasks(config, where, "tasks"))


def _tasks(config: Mapping[str, Any], where: Path, key: str) -> tuple[InputType, ...]:
    """Return the roles that sentence-transformers' tasks stand for; passages if it says nothing."""
    given = config.get(key)
    tasks = ["document"] if given is None else [given] if isinstance(given, str) else list(given)
    if not set(tasks) <= set(_ROLES):
        raise CheckpointError(f"{where} gives {key} {tasks}; nimbed knows {', '.join(_ROLES)}")
    return tuple(_ROLES[task] for task in tasks)


def _network(weights: Path, kind: str) -> TransformerFile:
    said = read_transformer(weights, kind)
    if said.task != "feature-extraction":
        raise CheckpointError(
            f"{weights} has a Transformer for the task {said.task!r}, which gives no token states"
        )
    return said


def _read_stanfords(folder: Path) -> Pipeline:
    said, where = read_json(folder / _STANFORD), folder / _STANFORD
    check_keys(said, where, FILES[_STANFORD])
    network = _network(folder, "Transformer")
    width = size_of(read_json(folder / "config.json"), folder / "config.json", "hidden_size")
    punctuation = _flag(said, where, "mask_punctuation", True)
    return Pipeline(
        folder=folder,
        weights=folder,
        # The projection is the tensor linear.weight among the network's own.
        modules=(
            DenseModule(
                folder, width, _size(said, where, "dim", 128), False, "Identity", residual=False
            ),
        ),
        max_tokens=network.max_tokens,
        do_lower_case=network.do_lower_case,
        multi=ColBert(
            query_prefix=f"{said.get('query_token_id') or '[unused0]'} ",
            passage_prefix=f"{said.get('doc_token_id') or '[unused1]'} ",
            passage_tokens=_size(said, where, "doc_maxlen", None),
            expansion=Expansion(
                token=_expanding(None, folder),
                length=_size(said, where, "query_maxlen", _QUERY_TOKENS),
                attended=_flag(said, where, "attend_to_mask_tokens", False),
            ),
            skipped=tuple(string.punctuation) if punctuation else (),
        ),
        dense=False,
    )


def _of_pylate(said: Mapping[str, Any], where: Path, weights: Path) -> ColBert:
    prefixes = [said.get(f"{role}_prefix") or "" for role in ("query", "document")]
    skipped = said.get("skiplist_words")
    if skipped is None:
        skipped = list(string.punctuation)
    length = _size(said, where, "query_length", None)
    expansion = None
    if _flag(said, where, "do_query_expansion", True):
        expansion = Expansion(
            token=_expanding(None, weights),
            length=length or _QUERY_TOKENS,
            attended=_flag(said, where, "attend_to_expansion_tokens", False),
        )
    return ColBert(
        query_prefix=str(prefixes[0]),
        passage_prefix=str(prefixes[1]),
        query_tokens=None if expansion else length,
        passage_tokens=_size(said, where, "document_length", None),
        expansion=expansion,
        skipped=_words(skipped, where),
    )


def _of_transformer(facts: ColBert, config: Mapping[str, Any], weights: Path) -> ColBert:
    """Let the Transformer's own file have the last word about lengths and expansion."""
    where = weights / "sentence_bert_config.json"
    given: dict[str, Any] = {}
    for key, name in (("query_length", "query_tokens"), ("document_length", "passage_tokens")):
        if config.get(key) is not None:
            given[name] = size_of(config, where, key)
    asked = config.get("query_expansion")
    if asked is not None:
        known = {"strategy", "attend", "token", "length"}
        if not isinstance(asked, dict) or not set(asked) <= known:
            raise CheckpointError(f"{where} gives query_expansion {asked!r}; nimbed knows {known}")
        if asked.get("strategy") not in ("fixed", "min"):
            raise CheckpointError(
                f"{where} expands queries by the strategy {asked.get('strategy')!r}; nimbed knows "
                f"'fixed' and 'min'"
            )
        given["expansion"] = Expansion(
            token=_expanding(asked.get("token"), weights),
            length=size_of(asked, where, "length"),
            attended=_flag(asked, where, "attend", False),
            fixed=asked["strategy"] == "fixed",
        )
    return dataclasses.replace(facts, **given)


def _skipped(mask: Mapping[str, Any], where: Path) -> dict[str, Any]:
    return {
        "skipped": _words(mask.get("skiplist_words") or [], where),
        "skipped_in": _tasks(mask, where, "skiplist_tasks"),
    }


def _words(given: Any, where: Path) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        raise CheckpointError(f"{where} gives skiplist_words {given!r:.60}, expected words")
    return tuple(given)


def _size(said: Mapping[str, Any], where: Path, key: str, otherwise: Any) -> Any:
    return otherwise if said.get(key) is None else size_of(said, where, key)


def _flag(said: Mapping[str, Any], where: Path, key: str, otherwise: bool) -> bool:
    value = said.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where} gives {key} {value!r}, expected true or false")
    return otherwise if value is None else value


def _check_metric(said: Mapping[str, Any], where: Path) -> None:
    # A mean over a query's tokens ranks passages as their sum does. PyLate wrote cosine for MaxSim.
    metric = said.get("similarity_fn_name")
    if metric is not None and str(metric).lower() not in ("maxsim", "meanmaxsim", "cosine"):
        raise CheckpointError(
            f"{where} ranks by similarity_fn_name {metric!r}; multi-vectors are ranked by maxsim"
        )


def _expanding(token: str | None, folder: Path) -> str:
    """Return the token that queries are expanded by: the one named, the mask, or the end's."""
    vocabulary = read_vocabulary(folder)
    names = (
        (token,)
        if token is not None
        else (read_special_token(folder, "mask_token"), read_special_token(folder, "eos_token"))
    )
    found = next((name for name in names if name in vocabulary), None)
    if found is None:
        raise CheckpointError(
            f"{folder} expands queries by {token or 'a mask or end token'!r}, which its "
            f"tokenizer.json does not know"
        )
    return found


def prefixed(facts: ColBert, prompts: Prompts) -> Prompts:
    """Return prompts with the markers before them, once."""
    return dataclasses.replace(
        prompts,
        query=facts.query_prefix + prompts.query.removeprefix(facts.query_prefix),
        passage=facts.passage_prefix + prompts.passage.removeprefix(facts.passage_prefix),
    )


def within(facts: ColBert, *, longest: int, positions: int) -> ColBert:
    """Return the same with the longest query and passage that a network reads.

    Args:
        facts: What the files say.
        longest: The longest text where they say nothing.
        positions: The longest that the network can read.

    Raises:
        CheckpointError: If queries are expanded to more.
    """
    asked, expansion = facts.query_tokens, facts.expansion
    if expansion is not None and expansion.length > positions:
        raise CheckpointError(
            f"queries are expanded to {expansion.length} tokens; the network reads {positions}"
        )
    if expansion is not None and expansion.fixed:
        asked = expansion.length
    elif expansion is not None and asked is not None:
        asked = max(asked, expansion.length)
    return dataclasses.replace(
        facts,
        query_tokens=min(asked or longest, positions),
        passage_tokens=min(facts.passage_tokens or longest, positions),
    )


class ExpandedRow(list[int]):
    """Token ids of a query and of what it is expanded by.

    Attributes:
        seen: How many of them, from the first on, are attended to.
    """

    seen: int = 0


def tokenizing_as(
    input_type: InputType, tokenizer: TextTokenizer, facts: ColBert, folder: Path
) -> Callable[..., Tokens]:
    """Return what tokenizes texts of a role, as ``TextTokenizer.encode`` does."""
    if input_type == "passage":
        return tokenizer.encode
    limited = tokenizer.limited(facts.query_tokens or tokenizer.max_tokens)
    expansion = facts.expansion
    if expansion is None:
        return limited.encode
    filling = read_vocabulary(folder)[expansion.token]

    def expanded(ids: Sequence[int]) -> ExpandedRow:
        row = ExpandedRow(ids)
        row.extend([filling] * (expansion.length - len(ids)))
        row.seen = len(row) if expansion.attended else len(ids)
        return row

    def encode(texts: Sequence[str], **options: Any) -> Tokens:
        tokens = limited.encode(texts, **options)
        return tokens._replace(rows=[expanded(ids) for ids in tokens.ids])

    return encode
