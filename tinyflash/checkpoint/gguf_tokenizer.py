"""The tokenizer inside a GGUF file, rebuilt from its metadata with the `tokenizers` package."""

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from tinyflash.tokenizer import Tokenizer, put_before

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # tokenizer.ggml.token_type

# How Llama 3 cuts a text into the pieces that merges stay inside of: contractions, words with one
# sign before them, up to three digits, signs, line ends, spaces.
LLAMA3_PIECES = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_from_gguf(checkpoint):
    """The Tokenizer that the metadata of a GGUFCheckpoint describe.

    raises: ValueError if the file holds none, or one of a kind that we do not have
    """
    metadata = {
        key.removeprefix("tokenizer.").removeprefix("ggml."): value
        for key, value in checkpoint.metadata.items()
        if key.startswith("tokenizer.")
    }
    if "tokens" not in metadata or "model" not in metadata:
        raise ValueError(f"{checkpoint.path} holds no tokenizer; convert the model with one.")
    kind, pieces = metadata["model"], metadata.get("pre", "default")
    builders = {"gpt2": byte_level_bpe, "llama": sentencepiece_bpe}
    if kind not in builders or (kind == "gpt2" and pieces not in PRE_TOKENIZERS):
        raise ValueError(
            f"{checkpoint.path} holds a tokenizer of kind {kind!r} with pre-tokenizer {pieces!r}; "
            f"of GGUF files tinyflash reads 'llama', and 'gpt2' with {', '.join(PRE_TOKENIZERS)}."
        )
    try:
        backend = builders[kind](metadata)
    except Exception as error:  # the package raises bare Exceptions
        raise ValueError(f"{checkpoint.path}: damaged tokenizer ({error!r}).") from None

    typed = list(zip(metadata["tokens"], metadata.get("token_type", ()), strict=False))
    special = [token for token, type in typed if type in (UNKNOWN, CONTROL)]
    plain = [token for token, type in typed if type == USER_DEFINED]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])

    bos_id = metadata.get("bos_token_id")
    adds_bos = metadata.get("add_bos_token", kind == "llama" or pieces == "llama-bpe")
    put_before(backend, bos_id if adds_bos else None)
    # the end of a text, of a turn, of a message
    ends = [metadata.get(f"{end}_token_id") for end in ("eos", "eot", "eom")]
    eos_ids = [id for id in ends if id is not None]
    return Tokenizer(backend, bos_id, eos_ids, metadata.get("chat_template"))


def gpt2_pieces():
    """GPT-2's: contractions, and words, numbers and signs with the one space before them."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def smollm_pieces():
    """SmolLM's: every digit apart, then GPT-2's between the digits.

    In that order: three spaces before a digit are one piece of three spaces, whereas GPT-2's rule
    alone (which transformers uses for these GGUF files) leaves the last to the digit. SmolLM2's
    tokenizer.json and llama.cpp do it as here.
    """
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2_pieces()])


def llama3_pieces():
    """Llama 3's own regular expression, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(LLAMA3_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS = {  # by tokenizer.ggml.pre
    "default": gpt2_pieces,
    "gpt-2": gpt2_pieces,
    "smollm": smollm_pieces,
    "llama-bpe": llama3_pieces,
}


def byte_level_bpe(metadata):
    """Byte-level BPE ("gpt2"): vocabulary and merges are in the file."""
    pieces = metadata.get("pre", "default")
    vocabulary = {token: id for id, token in enumerate(metadata["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["merges"]]
    # Llama 3 takes a piece that is a word of the vocabulary whole, whatever the merges say.
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=pieces == "llama-bpe"))
    backend.pre_tokenizer = PRE_TOKENIZERS[pieces]()
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece_bpe(metadata):
    """Sentencepiece's BPE ("llama"): no merges in the file, but each word has a score.

    Sentencepiece joins the two neighbors whose union has the highest score; so every way to cut
    a word in two words is a merge, and the scores give the order.
    """
    tokens = metadata["tokens"]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    words = [id for id, type in enumerate(metadata["token_type"]) if type == NORMAL]
    known = {tokens[id] for id in words}
    words.sort(key=lambda id: -metadata["scores"][id])
    merges = [
        (tokens[id][:cut], tokens[id][cut:])
        for id in words
        for cut in range(1, len(tokens[id]))
        if tokens[id][:cut] in known and tokens[id][cut:] in known
    ]
    unknown = tokens[metadata.get("unknown_token_id", 0)]
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = Backend(model)
    space_first = metadata.get("add_space_prefix", True)  # words of a text begin with their space
    spell_spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), spell_spaces] if space_first else [spell_spaces]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(
        [*steps, decoders.Strip(" ", 1, 0)] if space_first else steps
    )
    return backend
