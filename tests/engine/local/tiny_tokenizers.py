"""Tokenizers of every family's kind, small and built in code, so that no file need be shipped.

Vocabularies are written down rather than trained: the same on every machine and version.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

_TEXT = """
a an and answer are at by cat company computers cost does dog embed far fast for from given gpu
graphics how in instruct is it jumps lazy makes many memory model of on or over passage passages
query question quick rain retrieve river sky slow sleeps text that the this to token under vector
warm was what when where which why with words york naïve café münchen 東京 нет
"""
WORDS = _TEXT.split()

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def bert_tokenizer() -> Tokenizer:
    """WordPiece that lowers case, ``[CLS] … [SEP]``."""
    letters = sorted({letter for word in WORDS for letter in _plain(word)} | set(_ASCII))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [f"##{letter}" for letter in letters if letter.isalnum()]
    pieces += [_plain(word) for word in WORDS if len(word) > 1] + ["##s", "##ing", "##ed"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(pieces[:5])
    return tokenizer


def xlmr_tokenizer() -> Tokenizer:
    """Unigram over ``▁words``, ``<s> … </s>``, as XLM-R's."""
    letters = sorted({letter for word in WORDS for letter in word} | set(_ASCII))
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -3.0 - 0.01 * rank) for rank, word in enumerate(WORDS)]
    pieces += [("ing", -5.0), ("ed", -5.0)]
    known = {piece for piece, _ in pieces}
    pieces += [(letter, -8.0) for letter in letters if letter not in known]
    pieces += [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(
        ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)]
    )
    return tokenizer


def llama3_tokenizer(*, extra: tuple[str, ...] = (), merged: bool = False) -> Tokenizer:
    """Byte-level BPE whose whole words need no merges, ``<|begin_of_text|> …``.

    Args:
        extra: More special tokens, such as ``<IMG_CONTEXT>``; they take the last ids.
        merged: Whether whole words need merges all the same, as Qwen's do.
    """
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelt = [
        byte_level.pre_tokenize_str(f"{space}{word}")[0][0] for space in ("", " ") for word in WORDS
    ]
    merges = list(_merges(spelt[::2]))
    pieces += [left + right for left, right in merges] + spelt
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=not merged))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), byte_level]
    )
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", *extra])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
            ),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def qwen_tokenizer() -> Tokenizer:
    """Byte-level BPE as Qwen's: its own normalizer and split, and words that need merges."""
    tokenizer = llama3_tokenizer(merged=True)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def mistral_tokenizer() -> Tokenizer:
    """SentencePiece-like BPE that falls back to bytes, ``<s> …``."""
    letters = sorted({letter for word in WORDS for letter in word} | set(_ASCII) | {"▁"})
    merges = list(_merges([f"▁{word}" for word in WORDS]))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    pieces += [left + right for left, right in merges]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


_ASCII = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'\"()-_/<>|[]\n"


def _plain(word: str) -> str:
    """Spell a word as BertNormalizer would."""
    return normalizers.BertNormalizer(lowercase=True).normalize_str(word).strip().replace(" ", "")


def _merges(pieces: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the merges that spell each piece from left to right, each once."""
    seen = set()
    for piece in pieces:
        for end in range(1, len(piece)):
            pair = (piece[:end], piece[end])
            if pair not in seen:
                seen.add(pair)
                yield pair
