"""A model as people hold it in their hands: load it, look at its logits, let it write."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tinyflash.chat import Chat
from tinyflash.checkpoint.entries import Checkpoint
from tinyflash.checkpoint.mapped import MappedFile, files_behind, refuse_changed
from tinyflash.checkpoint.opening import open_checkpoint
from tinyflash.checkpoint.sources import find_model
from tinyflash.config import ModelConfig
from tinyflash.families import read_config
from tinyflash.flash.engine import FlashEngine, open_engine
from tinyflash.flash.store.cached import open_or_convert
from tinyflash.flash.store.directory import is_store
from tinyflash.flash.store.verified import refuse_changed_store
from tinyflash.generate import Generation
from tinyflash.generation_config import Recommended, read_recommended
from tinyflash.kv_cache import KVCache
from tinyflash.progress import Progress, quiet
from tinyflash.settings import Sampling
from tinyflash.speculative.drafters import drafter_for
from tinyflash.speculative.tree import Tree
from tinyflash.taps import Tap
from tinyflash.token_ids import token_ids
from tinyflash.tokenizer import Tokenizer, tokenizer_of
from tinyflash.transformer import forward, no_tap
from tinyflash.weights import bytes_of, load_weights
from tinyflash.workers import blas_threads_for

FEW_TOKENS = 16
DTYPES = {"float32": np.float32, "float64": np.float64}


@dataclass
class Model:
    """A config, the weights that its names are bound to, and a tokenizer.

    name      : what the user called it
    weights   : dict of `config.weight_shapes` names -> arrays or matrices
    tokenizer : or None, for checkpoints used as an oracle by token ids alone
    eos_ids   : tokens that end a text
    recommended : how its makers would have texts made: the default of `generate` and `chat`
    flash     : the engine that reads the feed-forwards from flash, or None if all is in DRAM

    >>> model = load("default")
    >>> model.logits([5, 6]).shape, model.config.family, model.encode("To be")
    ((2, 2048), 'opt', [2, 55, 82, 301])
    """

    name: str
    path: Path
    config: ModelConfig
    weights: dict
    tokenizer: Tokenizer | None
    eos_ids: frozenset
    dtype: np.dtype
    recommended: Recommended
    flash: FlashEngine | None = None

    def __repr__(self):
        held = f"{bytes_of(self.weights) / 1e6:,.1f} MB in DRAM, computed in {self.dtype}"
        flash = f", flash in mode {self.flash.mode}" if self.flash else ""
        layers = f"{self.config.layers} layers of width {self.config.width}"
        return f"<Model {self.name!r}: {self.config.family}, {layers}, {held}{flash}>"

    @cached_property
    def files(self) -> list[MappedFile]:
        """The files that its weights are mapped from, to which nobody may write meanwhile."""
        return files_behind([*self.weights.values(), *(self.flash.factors if self.flash else ())])

    def logits(
        self,
        ids: Sequence[int],
        cache: KVCache | None = None,
        tap: Tap | None = None,
        tree: Tree | None = None,
    ) -> np.ndarray:
        """Logits after each of the tokens.

        ids   : ints (T,), T ≥ 1
        cache : KVCache of the tokens before them (it then also holds these), or None
        tap   : function (name, tensor) that is shown every intermediate tensor, or None
        tree  : speculative.tree.Tree whose tokens the ids are, or None if each follows the one
                before; once it is decided which of its tokens stay, see `keep`
        returns: (T, V), float32 (or float64 if the model was loaded so)
        raises: ValueError if the ids are none of the vocabulary, the context overflows, or weights
                with Inf or NaN made the logits meaningless; OSError if somebody wrote to a file
                of the model (one that is cut short in the middle of this ends the process). After
                this and every other exception, as Ctrl-C, the cache is as it was, and the next
                call may come
        """
        ids = token_ids(ids, self.config.vocab_size)
        known = 0 if cache is None else cache.length
        if len(ids) == 0:
            raise ValueError("Logits are computed for a list of at least one token id.")
        deep = known + (len(ids) if tree is None else int(tree.depths.max()) + 1)
        if deep > self.config.context:
            raise ValueError(
                f"{deep} tokens do not fit this model's context of "
                f"{self.config.context}; shorten the text."
            )
        try:
            refuse_changed(self.files)
            logits = self._pass(ids, cache, tap, tree)
            refuse_changed(self.files)
            if not np.isfinite(logits).all():
                raise ValueError(self._why_infinite())
            return logits
        except BaseException:  # Ctrl-C, too: the cache holds what it held
            if cache is not None:
                cache.truncate(known)
            raise

    def _pass(self, ids, cache, tap, tree):
        """One forward pass, when it is our turn: (T, V) logits."""
        turn = self.flash.turn if self.flash else nullcontext()
        # A pass over few tokens is as fast as its weights come: more threads only take their time.
        config, many = self.config, len(ids) > FEW_TOKENS
        threads = blas_threads_for(many * len(ids) * config.width * config.ffn_width)
        undecided = len(ids) if tree is not None and len(ids) > 1 else 0  # a root always stays
        # One sentence above says more than NumPy's warnings.
        with turn, threads, np.errstate(all="ignore"):
            layers = self.flash.begin(tap, undecided, cache) if self.flash else None
            logits = forward(self.weights, self.config, ids, cache, tap or no_tap, layers, tree)
            if self.flash:
                self.flash.end()
        return logits

    def keep(self, cache: KVCache, start: int, path: Sequence[int]) -> None:
        """Of a tree that was computed last, from token number `start` on, keep an accepted path.

        path : increasing ints, nodes of the tree
        """
        cache.keep(start, path)
        if self.flash:
            self.flash.keep(path, cache)

    def _why_infinite(self):
        """Which weight made the logits Inf or NaN: 16-bit matrices have been checked by now."""
        for name, weight in self.weights.items():
            if isinstance(weight, np.ndarray) and not np.isfinite(weight).all():
                return f"{self.name}: {name} holds Inf or NaN; get another copy of the checkpoint."
        return (
            f"{self.name}: the logits are Inf or NaN though all weights are finite, so numbers on "
            f"the way went beyond {self.dtype}'s range; these weights make no working model."
        )

    def new_cache(self, tokens: int = 64) -> KVCache:
        """An empty KV cache for this model, with room for `tokens`; it grows as needed."""
        self.reserve(tokens)
        return KVCache(self.config, self.flash.kv_dtype if self.flash else self.dtype, tokens)

    def reserve(self, tokens: int) -> None:
        """See that the KV cache of so many tokens fits the memory allowed, if any is.

        raises: ValueError if it does not
        """
        if self.flash:
            self.flash.make_room_for_kv_cache(min(tokens, self.config.context))

    def generate(self, prompt: str | Sequence[int], **settings: Any) -> Generation:
        """A Generation: iterate over it for pieces of text.

        prompt   : str (encoded with the tokens that begin a text), or a list of token ids
        settings : max_new_tokens, stop, see Generation; those of settings.Sampling (temperature,
                   top_k, …), each the model's own where it is left out or None; drafter, an object
                   or a word for one, see `drafter`; tap, see Generation
        raises   : ValueError for settings that mean nothing, a prompt that does not fit, or text
                   where there is no tokenizer
        """
        tap = settings.pop("tap", no_tap)
        generation = Generation(self, self.encode(prompt), **self.settled(settings))
        generation.tap = tap
        return generation

    def drafter(self, word: object, width: int | None = None, length: int | None = None) -> Any:
        """The drafter that a word means, at work for this model; see speculative/drafters.py."""
        return drafter_for(self, word, load, width, length)

    def settled(self, settings: dict) -> dict[str, Any]:
        """The settings as Generation takes them, with what the model's makers recommend.

        What they recommend and tinyflash does not do is said, once, as a warning.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        drafter = self.drafter(given.pop("drafter", None))
        names = given.keys() & {field.name for field in fields(Sampling)}
        sampling = self.recommended.sampling({name: given.pop(name) for name in names})
        ignored = self.recommended.describe_ignored()
        if ignored:
            warnings.warn(ignored, stacklevel=1)
        return {"sampling": sampling, "drafter": drafter, **given}

    def encode(self, text: str | Sequence[int]) -> list[int]:
        """Token ids of a text, a list of int; a list of ids passes through, once it is checked.

        raises: ValueError for ids that are none, and where there is no tokenizer for a text
        """
        if not isinstance(text, str):
            return token_ids(text, self.config.vocab_size).tolist()
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} has no tokenizer (no tokenizer.json, nor vocab.json with "
                "merges.txt), so it reads token ids only; put the files beside the weights."
            )
        return self.tokenizer.encode(text)

    def chat(self, system: str | None = None, template: str | None = None) -> Chat:
        """A conversation that keeps its KV cache from turn to turn.

        system  : a text that the model is told before all else, or None
        template: Jinja source of a chat template, or None for the model's own
        """
        return Chat(self, system, template)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights that are kept; a matrix under two names counts once."""
        if self.flash:
            return self.flash.nbytes
        return bytes_of(self.weights)


def load(
    source: str | Path,
    *,
    memory: str | int | None = None,
    mode: str | None = None,
    k: int | None = None,
    dtype: str = "float32",
    progress: Progress = quiet,
) -> Model:
    """Open a model.

    source : a directory, a flash directory, a GGUF file, a hub id, or the words `default` and
             `smollm2`
    memory : most DRAM that weights and KV cache may take: bytes, or a text such as "50%" (of the
             weights) or "6.65GB"; the rest is read from flash, and a model that is no flash
             directory is first converted into one in the user's cache. None for all weights
    mode   : of the flash feed-forwards, see flash/feed_forward.py; None for the best there is
    k      : tokens of the window, in modes that keep one; None for as many as fit
    dtype  : "float32", or "float64" for proofs
    progress : shown the steps, as terminal.progress; by default nobody is
    raises : ValueError or OSError, one sentence each, for everything that can be wrong with it

    >>> load("default").logits([5]).dtype, load("default", dtype="float64").logits([5]).dtype
    (dtype('float32'), dtype('float64'))
    """
    if dtype not in DTYPES:
        raise ValueError(f"A model computes in float32 or float64, not in {dtype!r}.")
    dtype = np.dtype(DTYPES[dtype])
    path, flash = find_model(str(source)), None
    if is_store(path) or memory is not None:
        store = open_or_convert(path, source, progress)
        settings = {"memory": memory, "mode": mode, "k": k, "dtype": dtype}
        flash = open_engine(store, **settings, progress=progress)
        path, config, weights = store.path, store.config, flash.weights
        tokenizer = tokenizer_of(Checkpoint(store.path, store.hf_config, {}))
    else:
        refuse_without_flash(source, mode=mode, k=k)
        with progress(f"Opening {source}"):
            checkpoint = open_checkpoint(path)
            config = read_config(checkpoint.config)
            weights = load_weights(checkpoint, config, dtype)
            tokenizer = tokenizer_of(checkpoint)
    eos_ids = set(config.eos_ids) | set(tokenizer.eos_ids if tokenizer else ())
    recommended = read_recommended(path, config.context)
    if flash:
        refuse_changed_store(flash.store)  # the small files, too, were read since it was verified
    return Model(
        name=str(source),
        path=path,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        eos_ids=frozenset(eos_ids),
        dtype=dtype,
        recommended=recommended,
        flash=flash,
    )


def refuse_without_flash(source: object, **settings: object) -> None:
    """Raise a ValueError if a setting of flash was given where all weights stay in DRAM.

    >>> refuse_without_flash("default", mode="windowed", k=None)
    Traceback (most recent call last):
        ...
    ValueError: default is to be opened with all weights in DRAM, where mode has no effect; ...
    """
    given = [name for name, value in settings.items() if value is not None]
    if given:
        raise ValueError(
            f"{source} is to be opened with all weights in DRAM, where {' and '.join(given)} "
            f"{'has' if len(given) == 1 else 'have'} no effect; give a memory, as '50%', or leave "
            f"{'it' if len(given) == 1 else 'them'} out."
        )
