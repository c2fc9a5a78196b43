"""Random weights whose neurons behave like those of a trained sparse model.

What *LLM in a flash* lives on is planted, nothing else is: few neurons are active, a low-rank
predictor can tell which, and neighboring tokens use nearly the same ones. The residual stream is

    x = slow + token + noise      half of its energy in Q, 64 directions; noise has all of them

where `slow` lies in Q and changes little from token to token, and a neuron's row of the up
projection (gated: of the gate) is a random combination of Q's directions plus noise. Its threshold
is set by running the layers made so far on a sample of text.

- Learned positions (OPT): the position embeddings are `slow`, an AR(1) walk through Q, and the
  neurons' biases are the thresholds.
- Rotary positions (Llama, Falcon): there are no biases, so one direction that all embeddings share
  takes their place; and layer 0's attention averages the last few tokens' part in Q, its queries
  and keys meeting in the slowly turning pairs, so that scores fall with distance. Falcon's first
  feed-forward stands beside that attention, not behind it: its neurons follow the token alone.
"""

import math
import zlib
from dataclasses import replace

import numpy as np

from tinyflash.config import layer_shapes
from tinyflash.matrices.half import HalfMatrix
from tinyflash.ops import rotary_frequencies
from tinyflash.places import places_of
from tinyflash.transformer import block, embed, no_tap
from tinyflash.workers import pool

RMS = 2.0  # of the embeddings; it keeps float16 weights away from subnormal numbers
SLOW = 0.8  # share of Q's energy that changes slowly; the rest is the token's own
FADE = 0.9  # correlation of `slow` between neighboring positions, where they are learned
SHARED = 0.3  # of the energy, in the direction that takes the biases' place
SPREAD = 0.3  # of the neurons' thresholds, in standard deviations of a pre-activation
WRITES = 0.35  # RMS of all that the layers add, in RMS of the embeddings: more would drown Q
SLOW_TURNS = (0.01, 0.08)  # radians a token of the rotary pairs in which scores fall
SHARPNESS = 21.0  # score of a token with itself, there; above that of one far away
ROWS = 512  # of a matrix drawn at a time


class SetAtFirstUse:
    """A matrix that is made from what the forward pass first multiplies by it.

    So `transformer.block` itself, in the order of every family, runs while its layer is planted.
    """

    def __init__(self, make):
        """make : function x (T, in) -> float16 (out, in)."""
        self.make = make
        self.array = None

    def multiply(self, x):
        """x Wᵀ, W made first if it is not there yet. x: (T, in)."""
        if self.array is None:
            self.array = self.make(x)
        return HalfMatrix(self.array).multiply(x)


class Planting:
    """Makes the weights of one model, layer by layer, and runs what is there on a sample of text.

    config     : ModelConfig
    shares     : wanted share of active neurons, one number a layer
    seed       : int; the same seed gives the same weights
    ids        : int (T,), the sample
    directions : of Q, at most the head width where positions are rotary
    noise      : share of a pre-activation's variance that comes from full-rank noise
    active     : measured share of active neurons in the sample, of the layers made so far
    """

    def __init__(self, config, shares, seed, ids, directions, noise):
        """Draw the directions; see the class."""
        self.config, self.shares, self.seed, self.ids = config, shares, seed, ids
        self.noise = noise
        self.one_layer = replace(config, layers=1)
        self.active = []
        D = config.width
        drawn = self.draw("directions", (D, directions + 2))
        drawn[:, 0] = 1  # a layer norm takes this direction out, so the others avoid it
        basis = np.linalg.qr(drawn)[0].astype(np.float32)
        self.Q, self.shared = basis[:, 1:-1], basis[:, -1]  # (D, directions), (D,)
        self.rotary = config.positions == "rotary"

    def draw(self, name, shape, first=0):
        """Standard normal numbers that belong to a name and a first row: float32."""
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode()), first])
        return rng.standard_normal(shape, dtype=np.float32)

    def half(self, name, shape, scale, add=None):
        """A float16 matrix of normal numbers times `scale`, drawn a block of rows at a time.

        Each is one of 65536 drawn beforehand: there are 7 · 10⁹ to draw, and this is five times
        faster.

        add : function (first, last) -> what comes on top of those rows, or None
        """
        matrix = np.empty(shape, dtype=np.float16)
        normal = (scale * self.draw("normal", 1 << 16)).astype(np.float32 if add else np.float16)

        def fill(first):
            rows = matrix[first : first + ROWS]
            bits = np.random.SFC64([self.seed, zlib.crc32(name.encode()), first])
            picked = bits.random_raw(-(-rows.size // 4)).view(np.uint16)[: rows.size]
            noise = normal[picked].reshape(rows.shape)
            rows[...] = noise + add(first, first + len(rows)) if add else noise

        list(pool().map(fill, range(0, shape[0], ROWS)))
        return matrix

    def groups(self):
        """All weights, in groups that follow one another: dicts of our name -> float16 array."""
        ends = self.embeddings()
        yield {name: array for name, array in ends.items() if not name.startswith("unembed")}
        bound = {name: HalfMatrix(array) for name, array in ends.items()}
        x = embed(bound, self.config, self.ids, places_of(self.config, len(self.ids)).positions)
        for i in range(self.config.layers):
            layer, x = self.layer(i, x)
            yield {f"layers.{i}.{name}": array for name, array in layer.items()}
        # A tied head answers with the last token; this keeps its logit near 16.
        gain = 16 / (RMS * self.config.width) if self.config.tied else 1
        last = {"final_norm.weight": np.full(self.config.width, gain, dtype=np.float16)}
        if self.config.norm == "layer":
            last["final_norm.bias"] = np.zeros(self.config.width, dtype=np.float16)
        if not self.config.tied:
            shape = (self.config.vocab_size, self.config.width)
            last["unembed.weight"] = self.half("unembed", shape, shape[1] ** -0.5)
        yield last

    def embeddings(self):
        """Token embeddings and, where they are learned, position embeddings."""
        config, R = self.config, self.Q.shape[1]
        V, D = config.vocab_size, config.width
        constant = SHARED if self.rotary else 0.0
        in_q = (1 - constant) / 2  # shares of the energy; noise has as much as Q
        own = RMS * math.sqrt((1 - SLOW) * in_q * D / R) * self.draw("tokens in Q", (V, R))
        own -= own[self.ids].mean(axis=0)  # else a slow average would keep a constant part
        shift = RMS * math.sqrt(constant * D) * self.shared
        weights = {
            "embed.weight": self.half(
                "embed", (V, D), RMS * math.sqrt(in_q), lambda a, b: own[a:b] @ self.Q.T + shift
            )
        }
        if not self.rotary:
            rows = config.context + config.position_offset
            steps = self.draw("positions", (rows, R))
            for t in range(1, rows):
                steps[t] = FADE * steps[t - 1] + math.sqrt(1 - FADE**2) * steps[t]
            walk = RMS * math.sqrt(SLOW * in_q * D / R) * steps @ self.Q.T
            weights["positions.weight"] = walk.astype(np.float16)
        return weights

    def layer(self, i, x):
        """Weights of layer i, and what it makes of the sample.

        x : (T, D);  returns: dict name without prefix -> float16 array, and (T, D)
        """
        shapes = layer_shapes(self.config)
        D, prefix = self.config.width, f"layers.{i}."
        made = {}
        for name, shape in shapes.items():
            if len(shape) == 1:
                fill = 1 if name.endswith("norm.weight") else 0
                made[name] = np.full(shape, fill, dtype=np.float32)
            elif name in ("attn.o.weight", "ffn.down.weight"):
                made[name] = SetAtFirstUse(self.writer(prefix + name, shape))
            elif name != self.projection:
                made[name] = HalfMatrix(self.half(prefix + name, shape, D**-0.5))
        bias = made.get(self.projection.replace("weight", "bias"))
        made[self.projection] = SetAtFirstUse(
            lambda y: self.neurons(prefix, y, bias, self.shares[i])
        )
        if self.rotary and i == 0:
            made |= self.averaging_attention(shapes)
        named = {f"layers.0.{name}": w for name, w in made.items()}
        x = block(named, self.one_layer, 0, x, places_of(self.one_layer, len(x)), no_tap)
        return {name: stored(made[name]) for name in shapes}, x

    @property
    def projection(self):
        """The matrix whose product decides which neurons are active."""
        return "ffn.gate.weight" if self.config.gated else "ffn.up.weight"

    def writer(self, name, shape):
        """How to make a matrix that writes to the residual stream: what it adds has a set RMS.

        Each of the 2 L writes is independent of the others, so their squares add up.
        """
        wanted = WRITES * RMS / math.sqrt(2 * self.config.layers)

        def make(x):
            scale = wanted * (np.mean(np.square(x), dtype=np.float64) * shape[1]) ** -0.5
            matrix = self.half(name, shape, scale)
            some = HalfMatrix(matrix).multiply(x[::8])
            correction = wanted / math.sqrt(np.mean(np.square(some)))
            matrix *= np.float16(correction)
            return matrix

        return make

    def neurons(self, prefix, x, bias, share):
        """The projection of one layer, its thresholds set so that `share` of x's pre-activations
        are above zero.

        w_j = Q g_j + noise,   threshold μ_j + σ_j (θ + 0.3 n_j),   g_j, n_j normal

        x    : (T, D), the feed-forward's input
        bias : float32 (F,) that gets minus the thresholds, or None for the shared direction
        """
        F, D = self.config.ffn_width, self.config.width
        centered = x - x.mean(axis=0)
        in_q = np.square(centered @ self.Q).sum(axis=1).mean()
        energy = np.square(centered).sum(axis=1).mean()
        combine = math.sqrt((1 - self.noise) / in_q)
        g = self.draw(prefix + "combinations", (F, self.Q.shape[1])) * np.float32(combine)
        matrix = self.half(
            prefix + self.projection,
            (F, D),
            math.sqrt(self.noise / energy),
            lambda a, b: g[a:b] @ self.Q.T,
        )
        unit = np.ones(len(x), dtype=np.float32) if bias is not None else x @ self.shared  # (T,)
        some = slice(None, None, 1 if len(x) < 500 else 2)
        pre = HalfMatrix(matrix).multiply(x[some]) / unit[some, None]
        mean, deviation = pre.mean(axis=0), pre.std(axis=0)
        spread = np.float32(SPREAD) * self.draw(prefix + "thresholds", (F,))
        z = (pre - mean) / deviation - spread
        at = int((1 - share) * z.size)
        theta = np.partition(z, at, axis=None)[at]
        self.active.append(float(np.mean(z > theta)))
        thresholds = mean + deviation * (theta + spread)
        if bias is not None:
            bias[...] = -thresholds
        else:
            for a in range(0, F, ROWS):
                matrix[a : a + ROWS] -= (thresholds[a : a + ROWS, None] * self.shared).astype(
                    np.float16
                )
        return matrix

    def averaging_attention(self, shapes):
        """Layer 0's attention where positions are rotary: an average of Q over the last tokens.

        score(Δ) = A · mean_i cos(ω_i Δ)  over the pairs i that turn slowly
        """
        config, R = self.config, self.Q.shape[1]
        H, G, K = config.heads, config.kv_heads, config.head_width
        turns = rotary_frequencies(config.rope, K)
        slow = np.flatnonzero((turns >= SLOW_TURNS[0]) & (turns <= SLOW_TURNS[1]))
        # What the norm leaves of the shared direction before this attention.
        in_q = (1 - SHARED) / 2
        unit = math.sqrt(SHARED * config.width / (SHARED + in_q + (1 - SLOW) * in_q))
        one_head = np.zeros((K, config.width), dtype=np.float32)
        one_head[slow] = math.sqrt(SHARPNESS * math.sqrt(K) / len(slow)) / unit * self.shared
        value = np.zeros((K, config.width), dtype=np.float32)
        value[:R] = self.Q.T
        wanted = RMS * math.sqrt(SLOW * in_q)

        def make(z):
            matrix = np.tile(value.T, (1, H))  # (D, H·K)
            average = z @ matrix.T
            return (matrix * (wanted / math.sqrt(np.mean(np.square(average))))).astype(np.float16)

        return {
            "attn.q.weight": HalfMatrix(np.tile(one_head, (H, 1)).astype(np.float16)),
            "attn.k.weight": HalfMatrix(np.tile(one_head, (G, 1)).astype(np.float16)),
            "attn.v.weight": HalfMatrix(np.tile(value, (G, 1)).astype(np.float16)),
            "attn.o.weight": SetAtFirstUse(make),
        }


def stored(weight):
    """The float16 array of a weight of any of the three kinds used here."""
    if isinstance(weight, SetAtFirstUse):
        return weight.array
    if isinstance(weight, HalfMatrix):
        return weight.bits.view(np.float16)
    return weight.astype(np.float16)
