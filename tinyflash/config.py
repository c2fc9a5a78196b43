"""The shapes of a model, and the switches by which one family differs from another.

The shape alphabet of the whole project:

    T  tokens in this call        S  tokens that can be attended to (cache + this call)
    D  model width                L  layers
    H  query heads                G  key/value heads (G divides H)
    K  width of one head          F  neurons of one feed-forward
    V  vocabulary                 E  width of the token embedding (D nearly always)
    R  rank                       W  beams          N  draft length

Weights are stored (out, in) and applied as `x @ W.T`.
"""

import math
from dataclasses import dataclass
from numbers import Real


def is_count(value):
    """Whether this is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value):
    """Whether this is a finite number of at least 0."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclass(frozen=True)
class Rope:
    """Rotary positions (RoFormer, arXiv 2104.09864, §3.4.2) and how they are stretched.

    theta            : base of the wavelengths
    scaling          : "none", "linear" (all frequencies / factor) or "llama3" (slow ones only)
    factor           : how many times longer the context became
    low, high        : llama3 only: wavelengths above original_context / low are divided by factor,
                       those below original_context / high are kept, those between are blended
    original_context : llama3 only: context before the stretching, in tokens
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192

    def __post_init__(self):
        for name in ("theta", "factor", "low", "high", "original_context"):
            if not is_number(getattr(self, name)) or getattr(self, name) == 0:
                raise ValueError(
                    f"Rotary positions need a {name} above 0, but the config says "
                    f"{getattr(self, name)!r}."
                )
        if self.low >= self.high:
            raise ValueError(
                f"Rope scaling blends between its low factor {self.low} and its high factor "
                f"{self.high}, so the high one must be larger."
            )


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one model; a family file fills it from a Hugging Face config.json.

    A switch exists only because two families differ in it. All sizes are counts, no units.
    """

    family: str
    vocab_size: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # H
    kv_heads: int  # G
    head_width: int  # K
    ffn_width: int  # F
    context: int  # most tokens one sequence may have
    embed_width: int  # E

    activation: str = "relu"  # a key of ops.ACTIVATIONS
    gated: bool = False  # down(act(gate(x)) · up(x)) instead of down(act(up(x)))
    norm: str = "layer"  # "layer" or "rms"
    norm_eps: float = 1e-5
    norm_affine: bool = True  # norms have a gain (and layer norms a bias)
    norm_after: bool = False  # post-norm: normalize x + f(x) instead of x
    final_norm: bool = True
    positions: str = "learned"  # "learned" or "rotary"
    position_offset: int = 0  # OPT's table begins two rows late
    rope: Rope = Rope()
    window: int | None = None  # a token sees itself and window - 1 tokens before it
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True
    tied: bool = True  # logits use the embedding matrix

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self):
        sizes = (
            "vocab_size",
            "width",
            "layers",
            "heads",
            "kv_heads",
            "head_width",
            "ffn_width",
            "context",
            "embed_width",
        )
        for size in sizes:
            value = getattr(self, size)
            if not is_count(value):
                raise ValueError(
                    f"{size} must be a whole number of at least 1, but the config says {value!r}."
                )
        if self.window is not None and not is_count(self.window):
            raise ValueError(
                f"A window is a number of tokens, at least 1, but the config says {self.window!r}."
            )
        if not is_number(self.norm_eps):
            raise ValueError(
                f"norm_eps must be a small number, but the config says {self.norm_eps!r}."
            )
        switches = ("norm_affine", "qkv_bias", "out_bias", "ffn_bias", "tied")
        for switch in switches:
            if not isinstance(getattr(self, switch), bool):
                raise ValueError(
                    f"{switch} must be true or false, but the config says "
                    f"{getattr(self, switch)!r}."
                )
        if not all(isinstance(token, int) for token in self.eos_ids):
            raise ValueError(f"Token ids are whole numbers, and the config says {self.eos_ids}.")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly; "
                "choose a number of kv heads that divides the heads."
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(
                f"Rotary positions turn pairs of numbers, so a head width of {self.head_width} "
                "does not work; choose an even one."
            )


def weight_shapes(config):
    """Name and shape of every weight that `config` calls for, in the order of computation.

    These are the names that the forward pass looks up; a family file says what each is called
    in a checkpoint.

    returns: dict name -> shape tuple; matrices are (out, in)
    """
    V, D, E = config.vocab_size, config.width, config.embed_width
    shapes = {"embed.weight": (V, E)}
    if config.positions == "learned":
        shapes["positions.weight"] = (config.context + config.position_offset, D)
    if E != D:
        shapes["embed.project.weight"] = (D, E)
    for i in range(config.layers):
        for name, shape in layer_shapes(config).items():
            shapes[f"layers.{i}.{name}"] = shape
    if config.final_norm:
        shapes |= norm_shapes(config, "final_norm")
    if E != D:
        shapes["unembed.project.weight"] = (E, D)
    if not config.tied:
        shapes["unembed.weight"] = (V, E)
    return shapes


def layer_shapes(config):
    """Name and shape of every weight of one layer, without the `layers.{i}.` in front."""
    D, F = config.width, config.ffn_width
    H, G, K = config.heads, config.kv_heads, config.head_width
    shapes = norm_shapes(config, "attn.norm")
    for name, rows in (("q", H * K), ("k", G * K), ("v", G * K)):
        shapes |= linear_shapes(f"attn.{name}", rows, D, config.qkv_bias)
    shapes |= linear_shapes("attn.o", D, H * K, config.out_bias)
    shapes |= norm_shapes(config, "ffn.norm")
    shapes |= linear_shapes("ffn.up", F, D, config.ffn_bias)
    if config.gated:
        shapes |= linear_shapes("ffn.gate", F, D, config.ffn_bias)
    shapes |= linear_shapes("ffn.down", D, F, config.ffn_bias)
    return shapes


def linear_shapes(name, rows, columns, bias):
    """Shapes of one linear map, with its bias if it has one."""
    shapes = {f"{name}.weight": (rows, columns)}
    if bias:
        shapes[f"{name}.bias"] = (rows,)
    return shapes


def norm_shapes(config, name):
    """Shapes of one norm's gain and, for a layer norm, bias."""
    if not config.norm_affine:
        return {}
    shapes = {f"{name}.weight": (config.width,)}
    if config.norm == "layer":
        shapes[f"{name}.bias"] = (config.width,)
    return shapes
