"""What a model's makers recommend for generating: its generation_config.json.

It is the default of `generate` and `chat`, setting by setting; what measures a model (evaluate,
record, diff) never looks at it. Where the file says nothing of top_k, nothing is cut: transformers
then keeps the 50 likeliest, which is its own default and nobody's recommendation.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

from tinyflash.checks import is_number
from tinyflash.files import read_json
from tinyflash.settings import Sampling

# Our settings by the names that the file has for them.
NAMES = {field.name: field.name for field in fields(Sampling) if field.name != "seed"}
NAMES["no_repeat_ngram_size"] = NAMES.pop("no_repeat_ngram")
CUTS = ("temperature", "top_k", "top_p", "min_p")  # these work only where tokens are drawn

# What else changes a text in transformers, and the value that does not.
IGNORED = {
    "num_beams": 1,
    "penalty_alpha": 0,
    "dola_layers": None,
    "typical_p": 1,
    "top_h": None,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "guidance_scale": 1,
    "sequence_bias": None,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "force_words_ids": None,
    "constraints": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "max_new_tokens": None,
    "max_time": None,
    "stop_strings": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "forced_decoder_ids": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "token_healing": False,
    "assistant_ensemble_weight": None,
}

# Of settings in config.json, where old checkpoints have them, the values that change nothing.
IN_CONFIG = IGNORED | {
    "do_sample": False,
    "temperature": 1,
    "top_k": 50,  # what transformers once wrote everywhere
    "top_p": 1,
    "min_p": 0,
    "repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "suppress_tokens": None,
}


@dataclass(frozen=True)
class Recommended:
    """The settings of one generation_config.json; without arguments, of a model that has none.

    source   : the file, for messages
    samples  : its do_sample: whether tokens are drawn; if not, the likeliest is taken
    settings : dict of `Sampling`'s names, values as the file has them, nulls left out
    ignored  : dict of what the file also says and tinyflash does not do
    misplaced: dict of what config.json says of generating, where transformers 5 looks no longer

    >>> makers = Recommended(samples=True, settings={"temperature": 0.6, "top_k": 20})
    >>> makers.sampling({"top_k": 5}).top_k, makers.sampling({}).temperature
    (5, 0.6)
    """

    source: str = ""
    samples: object = False
    settings: dict = field(default_factory=dict)
    ignored: dict = field(default_factory=dict)
    misplaced: dict = field(default_factory=dict)

    def in_force(self, given: dict) -> dict:
        """Those of the recommended settings that hold beside the given ones, by name.

        A given setting takes the place of the recommended one of its name. Temperature, top_k,
        top_p and min_p hold where tokens are drawn: because the file says so or, with no
        temperature of 0, because one of them was given.
        """
        draws = self.draws(given) and given.get("temperature") != 0
        return {
            name: value
            for name, value in self.settings.items()
            if name not in given and (draws or name not in CUTS)
        }

    def draws(self, given: dict) -> bool:
        """Whether tokens are drawn: the file says so, or one of the cuts is given."""
        return bool(self.samples) or any(name in given for name in CUTS)

    def sampling(self, given: dict) -> Sampling:
        """The settings of a text: those given, and the recommended ones that are in force.

        given : dict of `Sampling`'s names; None stands for one that is not given
        raises: ValueError for settings that mean nothing; where they are the file's, it is named
        """
        given = {name: value for name, value in given.items() if value is not None}
        Sampling(**given)
        if not isinstance(self.samples, bool):
            raise ValueError(
                f"{self.source} says do_sample = {short(self.samples)}, which is neither true nor "
                "false; mend or delete the file."
            )
        held = self.in_force(given)
        temperature = 1.0 if self.draws(given) else 0.0
        try:
            return Sampling(**{"temperature": temperature} | held | given)
        except ValueError as error:
            raise ValueError(
                f"{self.source} recommends what means nothing: {error} Give that setting yourself, "
                "or mend the file."
            ) from None

    def describe_ignored(self) -> str:
        """What the model's files say of generating and tinyflash does not do; empty if nothing."""
        sentences = []
        if self.ignored:
            sentences.append(
                f"{self.source} also sets {listed(self.ignored)}: tinyflash does not do this, so "
                "it is ignored."
            )
        if self.misplaced:
            sentences.append(
                f"{Path(self.source).with_name('config.json')} sets {listed(self.misplaced)}: such "
                "settings are read from generation_config.json alone, so this is ignored."
            )
        return " ".join(sentences)


def listed(settings: dict) -> str:
    """Settings in one line: `top_k = 20, num_beams = 4`.

    >>> listed({"top_k": 20, "num_beams": 4})
    'top_k = 20, num_beams = 4'
    """
    return ", ".join(f"{name} = {short(value)}" for name, value in settings.items())


def short(value: object) -> str:
    """A value of the file in few letters.

    >>> short([1, 2, 3])
    '[1, 2, 3]'
    """
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_recommended(path: Path, context: int) -> Recommended:
    """What the generation_config.json beside a model recommends.

    path    : the model's directory; a file (GGUF) brings no recommendation
    context : of the model; a max_length beyond it changes nothing
    raises  : ValueError if the file is no JSON object; what its settings mean is looked at when
              they are used

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     file = Path(directory) / "generation_config.json"
    ...     written = file.write_text('{"do_sample": true, "top_k": 20, "num_beams": 4}')
    ...     found = read_recommended(Path(directory), context=96)
    >>> found.settings, found.ignored
    ({'top_k': 20}, {'num_beams': 4})
    """
    file = path / "generation_config.json"
    said = without_nulls(file)
    settings = {ours: said[name] for name, ours in NAMES.items() if name in said}
    neutral = dict(IGNORED)
    if is_number(said.get("max_length")) and said["max_length"] < context:
        neutral["max_length"] = None
    misplaced = {
        name: value
        for name, value in changing(without_nulls(path / "config.json"), IN_CONFIG).items()
        if said.get(name) != value
    }
    samples = said.get("do_sample", False)
    return Recommended(str(file), samples, settings, changing(said, neutral), misplaced)


def without_nulls(file: Path) -> dict:
    """A JSON dictionary without the names whose value is null; empty if there is no such file.

    >>> without_nulls(Path("no such file"))
    {}
    """
    if not file.is_file():
        return {}
    said = read_json(file)
    return {name: value for name, value in said.items() if value is not None}


def changing(said: dict, neutral: dict) -> dict:
    """Of the settings in `neutral`, those that are said and not neutral.

    >>> changing({"num_beams": 4, "typical_p": 1}, IGNORED)
    {'num_beams': 4}
    """
    return {
        name: said[name]
        for name, value in neutral.items()
        if name in said and said[name] not in (value, [], {}, "")
    }
