"""The tokenizer inside a GGUF file, rebuilt from its metadata."""

from tokenizers import AddedToken, normalizers

from tinyflash.chat_template import templates_of
from tinyflash.checkpoint.backends import (
    Words,
    add_special,
    byte_level_bpe,
    gpt2_pieces,
    llama3_pieces,
    put_around,
    qwen2_pieces,
    sentencepiece_bpe,
    smollm_pieces,
)
from tinyflash.files import printable
from tinyflash.native import native

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # tokenizer.ggml.token_type

PRE_TOKENIZERS = {  # by tokenizer.ggml.pre
    "gpt-2": gpt2_pieces,
    "phi-2": gpt2_pieces,
    "smollm": smollm_pieces,
    "llama-bpe": llama3_pieces,
    "llama3": llama3_pieces,
    "llama-v3": llama3_pieces,
    "qwen2": qwen2_pieces,
    "deepseek-r1-qwen": qwen2_pieces,
}
UNTOLD = (None, "", "default")  # pieces nobody named: converters of before May 2024 did not

# Tokens that end a turn or a message, whatever tokenizer.ggml.eos_token_id says: many files name
# no other. (llama.cpp finds them by the same spellings, in src/llama-vocab.cpp.)
ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}


def words_of_gguf(checkpoint):
    """The Words that the metadata of a GGUFCheckpoint describe.

    raises: ValueError if the file holds no tokenizer, does not say how it cuts texts, or holds one
            of a kind that we do not have
    """
    metadata = {
        key.removeprefix("tokenizer.").removeprefix("ggml."): value
        for key, value in checkpoint.metadata.items()
        if key.startswith("tokenizer.")
    }
    path, builder = checkpoint.path, builder_of(metadata, checkpoint.path)
    tokens = metadata["tokens"]
    ids, template = special_ids(metadata, path), chat_templates(metadata, path)
    with native(f"{path}: damaged tokenizer ({{}})."):
        backend = builder(metadata)
        typed = list(zip(tokens, metadata.get("token_type", ()), strict=False))
        special = [token for token, type in typed if type in (UNKNOWN, CONTROL)]
        plain = [token for token, type in typed if type == USER_DEFINED and token not in ENDS]
        ends = [end for end in ENDS if backend.token_to_id(end) is not None]
        add_special(backend, [*special, *ends])
        backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
        named = {f"{role}_token": tokens[ids[word]] for role, word in ROLES.items() if word in ids}
        adds_bos = metadata.get("add_bos_token", begins_with_bos(metadata))
        before = named.get("bos_token") if adds_bos else None
        after = named.get("eos_token") if metadata.get("add_eos_token", False) else None
        put_around(backend, before, after)
        ends = [ids[word] for word in ("eos", "eot", "eom") if word in ids] + [
            backend.token_to_id(end) for end in ends
        ]
    ends = tuple(dict.fromkeys(ends))
    return Words(backend, ids.get("bos"), ends, template, named)


def builder_of(metadata, path):
    """The function that builds the backend. Raises ValueError if there is none."""
    if "tokens" not in metadata or "model" not in metadata:
        raise ValueError(f"{path} holds no tokenizer; convert the model with one.")
    tokens, kind, pieces = metadata["tokens"], metadata["model"], metadata.get("pre")
    texts = [
        kind,
        *([] if pieces is None else [pieces]),
        *(tokens if type(tokens) is list else [0]),
    ]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path}: damaged tokenizer (what must be texts is not).")
    if kind == "llama":
        return bpe_of_scores
    if kind == "gpt2" and pieces in PRE_TOKENIZERS:
        return bpe_of_merges
    if kind == "gpt2" and pieces in UNTOLD:
        raise ValueError(
            f"{path} does not say how its model cuts a text into pieces (tokenizer.ggml.pre), and "
            "a guess would give other tokens than the model learned; take a file converted since "
            "May 2024, or write a copy that says it, for Llama 3: gguf-new-metadata "
            "--pre-tokenizer llama-bpe OLD.gguf NEW.gguf"
        )
    raise ValueError(
        f"{path} holds a tokenizer of kind {printable(kind)!r} with pre-tokenizer "
        f"{pieces and printable(pieces)!r}; of GGUF files tinyflash reads 'llama', and 'gpt2' "
        f"with {', '.join(PRE_TOKENIZERS)}."
    )


def special_ids(metadata, path):
    """Ids of the special tokens by the word that the file has for them: {"bos": 1, "unknown": 0}.

    raises: ValueError if one is no token of the file
    """
    ids = {}
    for word in (*ROLES.values(), "eot", "eom"):
        id = metadata.get(f"{word}_token_id")
        if id is None:
            continue
        if not isinstance(id, int) or not 0 <= id < len(metadata["tokens"]):
            raise ValueError(
                f"{path}: tokenizer.ggml.{word}_token_id is {id}, and the file has "
                f"{len(metadata['tokens'])} tokens; convert the model anew."
            )
        ids[word] = id
    return ids


def begins_with_bos(metadata):
    """Whether texts begin with BOS where the file does not say: as sentencepiece's, Llama 3's."""
    return metadata["model"] == "llama" or PRE_TOKENIZERS.get(metadata.get("pre")) is llama3_pieces


def chat_templates(metadata, path):
    """The chat template, or several by name, or None."""
    names = [name for name in metadata if name.startswith("chat_template.")]
    several = {name.removeprefix("chat_template."): metadata[name] for name in names}
    default = metadata.get("chat_template")
    if several and default is not None:
        several["default"] = default
    return templates_of(several or default, path)


def vocabulary_of(metadata):
    """Dict token -> id. Raises ValueError if two are spelled alike."""
    vocabulary = {token: id for id, token in enumerate(metadata["tokens"])}
    if len(vocabulary) != len(metadata["tokens"]):
        raise ValueError("two tokens are spelled alike")
    return vocabulary


def bpe_of_merges(metadata):
    """Byte-level BPE ("gpt2"): vocabulary and merges are in the file."""
    pieces = PRE_TOKENIZERS[metadata["pre"]]
    vocabulary = vocabulary_of(metadata)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["merges"]]
    # Llama 3 takes a piece that is a word of the vocabulary whole, whatever the merges say.
    backend = byte_level_bpe(vocabulary, merges, pieces(), pieces is llama3_pieces)
    if pieces is qwen2_pieces:
        backend.normalizer = normalizers.NFC()
    return backend


def bpe_of_scores(metadata):
    """Sentencepiece's BPE ("llama"): no merges in the file, but each word has a score.

    Sentencepiece joins the two neighbors whose union has the highest score; so every way to cut
    a word in two words is a merge, and the scores give the order.
    """
    tokens, vocabulary = metadata["tokens"], vocabulary_of(metadata)
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
    return sentencepiece_bpe(vocabulary, merges, unknown, metadata.get("add_space_prefix", True))
