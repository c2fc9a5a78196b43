"""The tokenizer of a Hugging Face model directory: what its files say about words, as Words.

tokenizer.json is a whole tokenizer; older models have a vocabulary, and its kind says the rest.
What stands beside it counts as it does in transformers 5: the names of special tokens, tokens that
were added later, what is put around a text. What we do not have is refused in one sentence.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from tinyflash import files
from tinyflash.chat_template import templates_of
from tinyflash.checkpoint.backends import Words, put_around
from tinyflash.checkpoint.tokenizer_kinds import (
    MERGED,
    NAMES,
    WORDPIECE,
    kind_of,
    names_of_kind,
    tokenizer_of_merges,
    tokenizer_of_words,
    whole_tokenizer,
)
from tinyflash.native import native

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")  # of a token


@dataclass
class TokenizerFiles:
    """What the small files of a directory say about words.

    config  : config.json
    settings: tokenizer_config.json, and special_tokens_map.json where that counts
    added   : tokens that stand beside the vocabulary, by the ids that the files give them
    older   : `added` is from the older files, which tokenizer.json's own tokens go with
    silent  : no file but config.json says anything of special tokens
    """

    directory: Path
    config: dict
    settings: dict
    added: dict[int, AddedToken]
    older: bool
    silent: bool

    @property
    def kind(self) -> str | None:
        """The class of the tokenizer."""
        return kind_of(self.settings, self.config)

    @property
    def whole(self) -> Path:
        """Where a whole tokenizer is, if there is one."""
        return self.directory / "tokenizer.json"


def words_of_directory(directory: str | Path) -> Words:
    """The Words of a Hugging Face model directory.

    directory: holds tokenizer.json, or vocab.json and merges.txt, or vocab.txt
    raises   : FileNotFoundError if it holds none of them; ValueError if a file is damaged, two
               disagree, or the tokenizer is of a kind that we do not have
    """
    directory = Path(directory)
    given = read_files(directory)
    names, extra = names_of(given), extra_tokens(given)
    template, ends = chat_template(given), ends_of_text(directory)
    backend = backend_of(given, names)
    with native(f"{directory}: the tokenizer cannot be read ({{}})."):
        if given.silent and given.kind in MERGED and not given.whole.is_file():
            names = names_by_id(given, backend) or names
        add_tokens(backend, given, list(names.values()), extra)
        named = {role: token.content for role, token in names.items()}
        if not given.whole.is_file():
            put_around(backend, *around(given, named))
        backend.encode_special_tokens = bool(given.settings.get("split_special_tokens", False))
        ids = {role: backend.token_to_id(text) for role, text in named.items()}
        say_unheeded(backend, given, ids)
        ends = [ids[role] for role in ("eos_token",) if ids.get(role) is not None] + ends
        tidy = is_tidied(backend, given.settings)
    check_ids(backend, given)
    return Words(backend, ids.get("bos_token"), ends, template, named, tidy)


# ---- what the files say


def read_files(directory: Path) -> TokenizerFiles:
    """Read the small files. Raises ValueError if one is damaged."""
    names = ("config", "tokenizer_config", "special_tokens_map", "added_tokens")
    paths = [directory / f"{name}.json" for name in names]
    config, settings, special, texts = (
        files.read_json(path) if path.is_file() else {} for path in paths
    )
    for path, said in zip(paths[1:3], (settings, special), strict=True):
        for role in said.keys() & set(ROLES):
            if said[role] is not None:
                as_token(said[role], path)
    silent = not settings and not special
    if not settings.get("extra_special_tokens"):  # the old name of these
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens", None)
    older = "added_tokens_decoder" not in settings
    if older:  # then the older files count
        settings["extra_special_tokens"] = merged(settings, special.get("extra_special_tokens"))
        settings |= {role: special[role] for role in special if role.endswith("_token")}
        listed = [(id, older_token(text, settings, special)) for text, id in texts.items()]
        if settings["extra_special_tokens"] is None:
            settings["extra_special_tokens"] = special.get("additional_special_tokens")
    else:
        listed = settings["added_tokens_decoder"]
        listed = list(listed.items()) if isinstance(listed, dict) else [(None, None)]
    path = paths[3] if older else paths[1]
    if not all(str(id).isdecimal() for id, _ in listed):
        raise ValueError(f"{path}: the added tokens are not given by their ids; mend the file.")
    added = {int(id): as_token(token, path, special=False) for id, token in listed}
    return TokenizerFiles(directory, config, settings, added, older, silent)


def merged(settings: dict, more: object) -> object:
    """The extra special tokens of tokenizer_config.json, and those of special_tokens_map.json."""
    extra = settings["extra_special_tokens"]
    if isinstance(extra, list) and isinstance(more, list):
        return [*extra, *more]
    return more or extra


def older_token(text: str, settings: dict, special: dict) -> dict:
    """A token of added_tokens.json, which is special if the other files call it so."""
    values = [settings.get(role) for role in ROLES]
    values += [value.get("content") for value in special.values() if isinstance(value, dict)]
    extra = settings["extra_special_tokens"]
    is_special = text in values or (isinstance(extra, (list, dict)) and text in extra)
    return {"content": text, "special": is_special, "normalized": not is_special}


def as_token(value: object, path: Path, special: bool = True) -> AddedToken:
    """A token as a file gives it: its text, or a dictionary with "content" and flags.

    special: where it does not say
    raises : ValueError that names the file
    """
    text = value.get("content") if isinstance(value, dict) else value
    flags = {flag: value[flag] for flag in FLAGS if flag in value} if text is not value else {}
    if not isinstance(text, str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise ValueError(
            f"{path}: {files.printable(repr(value))} is no token, which is a text, or a text as "
            "its content with flags that are true or false; mend the file."
        )
    return AddedToken(text, **{"special": special, **flags})


def names_of(given: TokenizerFiles) -> dict[str, AddedToken]:
    """The special tokens by what they are for: bos_token, eos_token, …, image_token."""
    settings, path = given.settings, given.directory / "tokenizer_config.json"
    values = {**dict.fromkeys(ROLES), **names_of_kind(given.kind, given.whole)}
    values |= {role: settings[role] for role in ROLES if role in settings}
    more = {role: settings[role] for role in settings if role.endswith("_token")}
    values |= {role: value for role, value in more.items() if isinstance(value, (str, dict))}
    if isinstance(settings["extra_special_tokens"], dict):
        values |= settings["extra_special_tokens"]
    names = {role: as_token(v, path) for role, v in values.items() if v is not None}
    for token in names.values():
        token.special = True
    return names


def extra_tokens(given: TokenizerFiles) -> list[AddedToken]:
    """The special tokens without a name."""
    path, extra = given.directory / "tokenizer_config.json", given.settings["extra_special_tokens"]
    if extra is None or isinstance(extra, dict):
        return []
    if not isinstance(extra, list):
        raise ValueError(f"{path}: the extra special tokens are not a list; mend the file.")
    return [as_token(token, path) for token in extra]


def ends_of_text(directory: Path) -> list[int]:
    """Ids of the tokens that end a text, from generation_config.json."""
    path = directory / "generation_config.json"
    ends = files.read_json(path).get("eos_token_id") if path.is_file() else None
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(type(id) is int for id in ends):
        raise ValueError(f"{path}: eos_token_id must be a token id or a list of them; mend it.")
    return ends


def chat_template(given: TokenizerFiles) -> str | dict[str, str] | None:
    """The chat template, or several by name, or None: files of their own count first."""
    directory = given.directory
    folder = directory / "additional_chat_templates"
    named = files.files_in(folder, "*.jinja") if folder.is_dir() else []
    several = {file.stem: files.read_text(file) for file in named}
    if (directory / "chat_template.jinja").is_file():
        several["default"] = files.read_text(directory / "chat_template.jinja")
    if several:
        return several["default"] if set(several) == {"default"} else several
    path, value = directory / "tokenizer_config.json", given.settings.get("chat_template")
    if value is None and (directory / "chat_template.json").is_file():
        path = directory / "chat_template.json"
        value = files.read_json(path).get("chat_template")
    return templates_of(value, path)


# ---- what they mean for the tokenizer


def backend_of(given: TokenizerFiles, names: dict[str, AddedToken]) -> Backend:
    """The vocabulary and how a text is cut. Raises as `words_of_directory`."""
    directory, settings = given.directory, given.settings
    if given.whole.is_file():
        return whole_tokenizer(given.whole, given.kind, settings)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return tokenizer_of_merges(directory, given.kind, settings)
    if (directory / "vocab.txt").is_file():
        unknown = names["unk_token"].content if "unk_token" in names else "[UNK]"
        return tokenizer_of_words(directory, given.kind, settings, unknown)
    if (directory / "tokenizer.model").is_file():
        raise ValueError(
            f"{directory} has a tokenizer.model of sentencepiece and no tokenizer.json; make one "
            'with transformers: python -c "from transformers import AutoTokenizer as T; '
            f"T.from_pretrained('{directory}').save_pretrained('{directory}')\""
        )
    raise FileNotFoundError(
        f"{directory} has no tokenizer; put the model's tokenizer.json, or its vocab.json and "
        "merges.txt, beside the weights."
    )


def names_by_id(given: TokenizerFiles, backend: Backend) -> dict[str, AddedToken]:
    """The special tokens whose ids config.json gives, for directories that say nothing else."""
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    ids = {role: given.config.get(f"{role}_id") for role in roles}
    words = {r: backend.id_to_token(id) for r, id in ids.items() if type(id) is int and id >= 0}
    return {r: AddedToken(word, special=True) for r, word in words.items() if word is not None}


def add_tokens(
    backend: Backend, given: TokenizerFiles, names: list[AddedToken], extra: list[AddedToken]
) -> None:
    """Make the backend find these tokens whole in every text, new ones behind its vocabulary."""
    present = backend.get_added_tokens_decoder()
    tokens = sorted(({**given.added, **present} if given.older else given.added).items())
    tokens = [token for _, token in tokens]
    for token in tokens:
        token.special = token.special or token.content in [name.content for name in names]
    known = {token.content for token in tokens}
    if given.kind not in NAMES:  # no class stands between tokenizer.json and its flags
        known |= {token.content for token in present.values()}
    # Of two that differ in their flags the later one counts.
    new = {repr(t): t for t in (*names, *extra) if t.content not in known}
    backend.add_tokens([*tokens, *new.values()])
    if given.kind == "Qwen2Tokenizer":  # which knows no flags
        backend.add_tokens([AddedToken(t.content, special=True) for t in (*names, *extra)])


def check_ids(backend: Backend, given: TokenizerFiles) -> None:
    """Raise a ValueError if a token did not get the id that the files give it."""
    for id, token in given.added.items():
        if backend.token_to_id(token.content) != id:
            name = "added_tokens.json" if given.older else "tokenizer_config.json"
            raise ValueError(
                f"{given.directory / name} gives the token {files.printable(token.content)} the "
                f"id {id}, and by the vocabulary it is {backend.token_to_id(token.content)}; one "
                "of the two files belongs to another model."
            )


def around(given: TokenizerFiles, named: dict[str, str]) -> tuple[str | None, str | None]:
    """What a tokenizer without tokenizer.json puts before and after every text."""
    if given.kind in WORDPIECE:
        return named.get("cls_token"), named.get("sep_token")
    # OPT was trained with its BOS before every text, and older files of it do not say so.
    bos = given.settings.get("add_bos_token", given.config.get("model_type") == "opt")
    eos = given.settings.get("add_eos_token", False)
    return named.get("bos_token") if bos else None, named.get("eos_token") if eos else None


def say_unheeded(backend: Backend, given: TokenizerFiles, ids: dict[str, int]) -> None:
    """Warn where tokenizer_config.json has another wish than tokenizer.json, which decides."""
    if not given.whole.is_file():
        return
    text = backend.encode("a").ids
    for end, token in (("bos", text[:1]), ("eos", text[-1:])):
        wish, id = given.settings.get(f"add_{end}_token"), ids.get(f"{end}_token")
        if wish is not None and id is not None and bool(wish) != (token == [id]):
            warnings.warn(
                f"{given.directory}: tokenizer_config.json says add_{end}_token: "
                f"{str(bool(wish)).lower()}, and tokenizer.json does otherwise; tinyflash follows "
                "tokenizer.json, as transformers 5 does.",
                stacklevel=2,
            )


def is_tidied(backend: Backend, settings: dict) -> bool:
    """Whether decoded texts lose the spaces before their signs; those of BPE have none there."""
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    is_bpe = isinstance(backend.model, models.BPE) and not settings.get(forced)
    return bool(settings.get("clean_up_tokenization_spaces")) and not is_bpe
