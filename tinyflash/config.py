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

from dataclasses import dataclass

from tinyflash.checks import check_config, check_rope

Shapes = dict[str, tuple[int, ...]]  # name of a weight -> its shape


@dataclass(frozen=True)
class Rope:
    """Rotary positions (RoFormer, arXiv 2104.09864, §3.4.2) and how they are stretched.

    theta            : base of the wavelengths
    scaling          : "none", "linear" (all frequencies / factor) or "llama3" (slow ones only)
    factor           : how many times longer the context became
    low, high        : llama3 only: wavelengths above original_context / low are divided by factor,
                       those below original_context / high are kept, those between are blended
    original_context : llama3 only: context before the stretching, in tokens

    >>> Rope(scaling="llama3", low=4.0, high=1.0)
    Traceback (most recent call last):
    ValueError: Rope scaling blends between its low factor 4.0 and its high factor 1.0, so ...
    """

    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192

    def __post_init__(self):
        check_rope(self)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one model; a family file fills it from a Hugging Face config.json.

    A switch exists only because two families differ in it. All sizes are counts, no units.

    >>> ModelConfig("opt", vocab_size=9, width=4, layers=2, heads=3, kv_heads=2, head_width=2,
    ...             ffn_width=8, context=16, embed_width=4)
    Traceback (most recent call last):
    ValueError: 3 heads cannot share 2 key/value heads evenly; ...
    """

    family: str
    vocab_size: int  # V
    width: int  # D
    layers: int  # L, as often as a layer is computed
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
    norm_plus_one: bool = False  # the gain of a norm is 1 + its weight
    norm_after: bool = False  # post-norm: normalize x + f(x) instead of x
    parallel: bool = False  # attention and feed-forward both read what enters the layer
    shared_norm: bool = False  # parallel only: both read it through one norm
    qk_norm: bool = False  # each head's queries and keys are normalized
    final_norm: bool = True
    causal: bool = True  # False for an encoder, whose tokens see those after them too
    positions: str = "learned"  # "learned", "rotary" or "alibi"
    position_offset: int = 0  # OPT's table begins two rows late
    rope: Rope = Rope()
    rotary_width: int | None = None  # so many numbers of a head are turned; None for all K
    window: int | None = None  # a token sees itself and window - 1 tokens before it
    window_layers: tuple[int, ...] | None = None  # the layers that have it; None for all
    embed_scale: float = 1.0  # token embeddings are multiplied by it
    embed_norm: bool = False  # a norm of the embeddings
    qkv_bias: bool = True
    out_bias: bool = True
    ffn_bias: bool = True
    tied: bool = True  # logits use the embedding matrix
    unembed_bias: bool = False
    unembed_transform: bool = False  # one more linear map and activation before the final norm
    layer_repeats: int = 1  # times in a row that the weights of a layer are used

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self):
        check_config(self)

    @property
    def turned(self) -> int:
        """How many numbers of a head rotary positions turn: the first so many."""
        return self.head_width if self.rotary_width is None else self.rotary_width

    @property
    def weight_layers(self) -> int:
        """How many layers have weights of their own: L / layer_repeats."""
        return self.layers // self.layer_repeats

    def weight_layer(self, layer: int) -> int:
        """Number of the layer whose weights a computed layer uses: layer // layer_repeats."""
        return layer // self.layer_repeats

    def window_of(self, layer: int) -> int | None:
        """The window of one layer in tokens, or None where every token before it is seen."""
        windowed = self.window_layers is None or layer in self.window_layers
        return self.window if windowed else None


def weight_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every weight that `config` calls for, in the order of computation.

    These are the names that the forward pass looks up; a family file says what each is called
    in a checkpoint.

    Where layers share weights there are only those of `config.weight_layers` layers: layer i is
    computed with those of layer i // layer_repeats.

    returns: dict name -> shape tuple; matrices are (out, in)

    >>> import tinyflash
    >>> shapes = weight_shapes(tinyflash.load("default").config)
    >>> shapes["embed.weight"], shapes["layers.0.ffn.down.weight"]
    ((2048, 192), (192, 768))
    """
    V, D, E = config.vocab_size, config.width, config.embed_width
    shapes: Shapes = {"embed.weight": (V, E)}
    if config.positions == "learned":
        shapes["positions.weight"] = (config.context + config.position_offset, D)
    if E != D:
        shapes["embed.project.weight"] = (D, E)
    if config.embed_norm:
        shapes |= norm_shapes(config, "embed.norm", D)
    for i in range(config.weight_layers):
        for name, shape in layer_shapes(config).items():
            shapes[f"layers.{i}.{name}"] = shape
    if config.unembed_transform:
        shapes |= linear_shapes("unembed.transform", D, D, bias=True)
    if config.final_norm:
        shapes |= norm_shapes(config, "final_norm", D)
    if E != D:
        shapes["unembed.project.weight"] = (E, D)
    if not config.tied:
        shapes["unembed.weight"] = (V, E)
    if config.unembed_bias:
        shapes["unembed.bias"] = (V,)
    return shapes


def layer_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every weight of one layer, without the `layers.{i}.` in front.

    >>> import tinyflash
    >>> layer_shapes(tinyflash.load("default").config)["attn.k.weight"]  # (G·K, D)
    (192, 192)
    """
    D, F = config.width, config.ffn_width
    H, G, K = config.heads, config.kv_heads, config.head_width
    shapes = norm_shapes(config, "attn.norm", D)
    for name, rows in (("q", H * K), ("k", G * K), ("v", G * K)):
        shapes |= linear_shapes(f"attn.{name}", rows, D, config.qkv_bias)
    if config.qk_norm:
        shapes |= norm_shapes(config, "attn.norm_q", K) | norm_shapes(config, "attn.norm_k", K)
    shapes |= linear_shapes("attn.o", D, H * K, config.out_bias)
    if not config.shared_norm:
        shapes |= norm_shapes(config, "ffn.norm", D)
    shapes |= linear_shapes("ffn.up", F, D, config.ffn_bias)
    if config.gated:
        shapes |= linear_shapes("ffn.gate", F, D, config.ffn_bias)
    shapes |= linear_shapes("ffn.down", D, F, config.ffn_bias)
    return shapes


def linear_shapes(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    """Shapes of one linear map, with its bias if it has one.

    >>> linear_shapes("attn.q", 8, 4, bias=True)
    {'attn.q.weight': (8, 4), 'attn.q.bias': (8,)}
    """
    shapes: Shapes = {f"{name}.weight": (rows, columns)}
    if bias:
        shapes[f"{name}.bias"] = (rows,)
    return shapes


def norm_shapes(config: ModelConfig, name: str, width: int) -> Shapes:
    """Shapes of the gain and, for a layer norm, bias of one norm over `width` numbers.

    >>> import tinyflash
    >>> norm_shapes(tinyflash.load("default").config, "final_norm", 192)
    {'final_norm.weight': (192,), 'final_norm.bias': (192,)}
    """
    if not config.norm_affine:
        return {}
    shapes: Shapes = {f"{name}.weight": (width,)}
    if config.norm == "layer":
        shapes[f"{name}.bias"] = (width,)
    return shapes
