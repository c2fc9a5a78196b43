"""The activity predictor: which neurons of a layer will fire, from two thin matrices.

    score = up (down x) + bias,     down (R, D), up (F, R), bias (F,)
    neuron j is predicted to fire where sigmoid(score_j) > threshold

(LLM in a flash, §3.1.) With R far below D it costs a hundredth of the projection that it
stands for, and fits in DRAM. A neuron that it misses is left out of the sum; one that it predicts
for nothing is read for nothing.

What the paper leaves open and we chose: x is the input of the feed-forward, after the norm; nothing
is added between the two matrices; each neuron has one bias, at the output. Training is in
training/learning.py.

How they lie in a flash directory is in store/predictor_file.py.
"""

import math

from tinyflash.ops import linear


class Predictor:
    """A source of activity (see activity.py) that guesses: it knows no pre-activation exactly.

    threshold : probability above which a neuron is predicted to fire
    """

    knows = ()

    def __init__(self, down, up, bias, threshold=0.5):
        """Two factors, arrays or anything that `ops.linear` multiplies by, and a bias.

        down : (R, D);  up : (F, R);  bias : (F,);  threshold : between 0 and 1
        raises: ValueError for shapes that do not fit, or another threshold
        """
        if down.shape[0] != up.shape[1] or bias.shape != (up.shape[0],):
            raise ValueError(
                f"A predictor of shapes {down.shape}, {up.shape} and {bias.shape} does not fit "
                "together; they are (R, D), (F, R) and (F,)."
            )
        if not 0 < threshold < 1:
            raise ValueError(f"A predictor's threshold lies between 0 and 1, not {threshold}.")
        self.down, self.up, self.bias = down, up, bias
        self.threshold = threshold

    def __repr__(self):
        return f"<Predictor: {self.bias.shape[0]:,} neurons by rank {self.rank}>"

    @property
    def rank(self):
        """R, the width between the two factors."""
        return self.down.shape[0]

    @property
    def nbytes(self):
        """Bytes that it keeps in DRAM."""
        return self.down.nbytes + self.up.nbytes + self.bias.nbytes

    @property
    def elements(self):
        """Weights that it multiplies by for each token: R·(D + F)."""
        (R, D), (F, _) = self.down.shape, self.up.shape
        return R * (D + F)

    def scores(self, x):
        """How likely each neuron is to fire, as a log-odds: up (down x) + bias.

        x : (..., D), what enters the feed-forward;  returns: (..., F)
        """
        return linear(linear(x, self.down), self.up, self.bias)

    def find(self, x, spent):
        """Which neurons each token is predicted to use, and nothing known for sure.

        x : (T, D);  spent : TokenCounters;  returns: bool (T, F), {}
        """
        with spent.timing("compute_ms"):
            return self.scores(x) > logit(self.threshold), {}


def logit(probability):
    """The score whose sigmoid is `probability`: log(p / (1 - p))."""
    return math.log(probability) - math.log1p(-probability)


def sigmoid(score):
    """1 / (1 + e⁻ˢ) of one number: the probability that a log-odds stands for."""
    return 1 / (1 + math.exp(-score)) if score > 0 else math.exp(score) / (1 + math.exp(score))
