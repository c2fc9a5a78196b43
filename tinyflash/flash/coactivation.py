"""Neurons that fire together: as bundles of two, and as neighbors on flash.

A recorded trace says which neurons each token used. From one we count who fires with whom, and
work out what reading the next tokens would cost if

- every neuron is stored with its *closest friend*, twice the bytes (LLM in a flash, §3.2,
  "bundling based on co-activation", which the paper tried and gave up);
- friends lie side by side, every neuron once (Ripple, arXiv 2410.19274).

Nothing is read here: these are counts over arrays. A bundle is all that one neuron is made of, and
a place is where on flash it lies: place p is the bytes from p · bundle_bytes on.
"""

from collections import Counter
from dataclasses import dataclass, fields

import numpy as np

from tinyflash.costs.cost_model import TokenWork, project
from tinyflash.costs.device_profile import DeviceProfile, Figure
from tinyflash.flash.reading.direct_io import BLOCK
from tinyflash.flash.reading.reads import round_down, round_up

THREADS = 16  # reads in flight
SOURCE = "measured with a FlashReader of 16 threads on a virtual NVMe disk"
SPEEDS = {4: 0.70, 8: 1.22, 16: 1.76, 32: 2.34, 64: 2.86, 256: 3.31}  # GB/s by KiB of one read;
VIRTUAL_NVME = DeviceProfile(  # at 4 KiB 0.3 to 0.7 were seen, and beyond 256 KiB no more
    "virtual NVMe disk",
    {(1024 * kib, THREADS): Figure(speed, SOURCE) for kib, speed in SPEEDS.items()},
    sequential=Figure(SPEEDS[256], SOURCE),
)


def coactivation_counts(active):
    """How many tokens used both of two neurons.

    counts[i, j] = Σ_t A[t, i] · A[t, j]; the diagonal says how many used neuron i at all

    active : bool (T, F), True where token t used neuron j;  T < 2^24, where float32 still counts
    returns: int32 (F, F), symmetric
    """
    used = active.astype(np.float32)
    return (used.T @ used).astype(np.int32)


def closest_friends(counts):
    """The neuron that fired most often together with each one.

    friend(i) = argmax over j ≠ i of counts[i, j]; the lowest j of several; i itself if there is
    none that ever fired with it

    counts : int (F, F), from `coactivation_counts`
    returns: int64 (F,)
    """
    others = counts.copy()
    np.fill_diagonal(others, 0)
    friends = others.argmax(axis=1)
    lonely = others.max(axis=1) == 0
    return np.where(lonely, np.arange(len(counts), dtype=np.int64), friends)


def fires_with_friend(counts, friends):
    """How often a neuron's friend fires when the neuron does: float32 (F,).

    P(friend(i) | i) = counts[i, friend(i)] / counts[i, i]; NaN without a friend, or never active
    """
    i = np.arange(len(friends), dtype=np.int64)
    together, fired = counts[i, friends].astype(np.float32), counts[i, i].astype(np.float32)
    known = (friends != i) & (fired > 0)
    return np.divide(together, fired, where=known, out=np.full_like(fired, np.nan))


def share_befriending_the_busiest(counts, friends, top=0.01):
    """Share of the neurons with a friend whose friend is one of the most active `top` share."""
    busiest = np.argsort(-counts.diagonal(), kind="stable")[: max(1, round(top * len(counts)))]
    befriended = friends[friends != np.arange(len(friends), dtype=np.int64)]
    return float(np.isin(befriended, busiest).mean()) if len(befriended) else 0.0


def friends_order(counts):
    """An order on flash in which neurons that fire together are neighbors.

    Greedy links (after Ripple, arXiv 2410.19274): pairs in falling order of counts[i, j]; a pair
    is linked if both still have an end free and they are not ends of the same chain. Chains then
    follow one another, the busiest neurons' first.

    counts : int (F, F), from `coactivation_counts`
    returns: int64 (F,), a permutation: order[p] is the neuron at place p
    """
    F = len(counts)
    i, j = np.triu_indices(F, 1)
    i, j = i[counts[i, j] > 0], j[counts[i, j] > 0]
    falling = np.argsort(-counts[i, j], kind="stable")
    links = [[] for _ in range(F)]
    boss = list(range(F))  # union-find: two neurons are in one chain if they have the same root

    def root(neuron):
        while boss[neuron] != neuron:
            boss[neuron] = neuron = boss[boss[neuron]]
        return neuron

    for a, b in zip(i[falling].tolist(), j[falling].tolist(), strict=True):
        if len(links[a]) < 2 and len(links[b]) < 2 and root(a) != root(b):
            boss[root(a)] = root(b)
            links[a].append(b)
            links[b].append(a)

    used, chains, placed = counts.diagonal(), [], set()
    for end in range(F):
        if len(links[end]) == 2 or end in placed:
            continue
        chain, following = [end], links[end]
        while following:
            chain += following
            following = [n for n in links[chain[-1]] if n != chain[-2]]
        placed.update(chain)
        chains.append(chain)
    chains.sort(key=lambda chain: -used[chain].mean())
    return np.array([neuron for chain in chains for neuron in chain], dtype=np.int64)


def used_before(active, k):
    """Which neurons the k tokens before each one used: A_{t-1} ∪ … ∪ A_{t-k}.

    active: bool (T, F);  k ≥ 0, 0 for no window;  returns: bool (T, F)
    """
    before = np.zeros_like(active)
    for back in range(1, min(k, len(active) - 1) + 1):
        before[back:] |= active[:-back]
    return before


def missing(active, k):
    """What has to be read when DRAM holds the neurons of the k tokens before: bool (T, F).

    A_t − (A_{t-1} ∪ … ∪ A_{t-k})                   (LLM in a flash, §3.1)
    """
    return active & ~used_before(active, k)


def pairs_to_read(wanted, friends):
    """The fewest bundles of two, (i, friend(i)), that bring all wanted neurons.

    Who is no wanted neuron's friend must be read itself. What it brings need not be read any more;
    that frees others to decide, and so on. Only rings remain then: friend of friend of … of
    oneself. There every second bundle will do.

    wanted : ints (n,);  friends: int (F,)
    returns: list of the neurons i whose bundles are read
    """
    wanted = [int(i) for i in wanted]
    friend = {i: int(friends[i]) for i in wanted}
    askers = Counter(friend.values())
    chosen, brought, decided = [], set(), set()
    undecided = [i for i in wanted if not askers[i]]

    def decide(i):
        decided.add(i)
        if i not in brought:
            chosen.append(i)
            brought.update((i, friend[i]))

    while undecided:
        i = undecided.pop()
        decide(i)
        askers[friend[i]] -= 1
        if friend[i] in friend and askers[friend[i]] == 0:
            undecided.append(friend[i])
    in_rings = [i for i in wanted if i not in decided]
    for i in sorted(in_rings, key=lambda i: i not in brought):
        while i not in decided:
            decide(i)
            i = friend[i]
    return chosen


def merged_reads(placed, bundle_bytes, gap=0):
    """The reads that bring bundles from their places: whole blocks, and near ones in one read.

    placed : bool (T, P), True where a token needs place p
    gap    : bytes between the blocks of two bundles that are read and thrown away rather than
             skipped; 0 merges only blocks that touch, as FlashReader does
    returns: int64 (reads, 3): token, first byte, byte after the last
    """
    token, place = np.nonzero(placed)
    begins, ends = round_down(place * bundle_bytes), round_up((place + 1) * bundle_bytes)
    apart = np.ones(len(token), dtype=bool)
    apart[1:] = (token[1:] != token[:-1]) | (begins[1:] > ends[:-1] + gap)
    last = np.append(apart[1:], True) if len(token) else apart
    return np.stack([token[apart], begins[apart], ends[last]], axis=1).astype(np.int64)


def io_ms(sizes, profile=VIRTUAL_NVME):
    """Projected milliseconds of reading: Σ count · size / throughput(size).

    sizes: dict bytes of one read -> how many;  profile: DeviceProfile
    """
    return project(TokenWork(dict(sizes), threads=THREADS), profile).io_ms


def gap_worth_reading(bundle_bytes, profile=VIRTUAL_NVME):
    """The longest gap (bytes) between two bundles that one read crosses as quickly as two reads go.

    max g, in whole blocks, with ms(one read of 2 b + g) ≤ ms(two of b), b the bundle's blocks
    """
    b, gap = int(round_up(bundle_bytes)), 0
    while io_ms({2 * b + gap + BLOCK: 1}, profile) <= io_ms({b: 2}, profile):
        gap += BLOCK
    return gap


@dataclass(frozen=True)
class Simulated:
    """What reading one layer's neurons would have cost over a trace; layers can be added.

    wanted      : (token, neuron) pairs that had to be read, and their bundles' bytes
    held        : (token, neuron) pairs in DRAM: used by the token or by the k before it
    stored_bytes: that the layer takes on flash
    sizes       : how many reads had which size, in bytes
    """

    tokens: int
    wanted: int
    bytes_wanted: int
    held: int
    stored_bytes: int
    sizes: Counter

    @property
    def reads(self):
        """Reads in all."""
        return self.sizes.total()

    @property
    def bytes_read(self):
        """Bytes read in all: what was wanted, friends, gaps, and the rest of the blocks."""
        return sum(size * count for size, count in self.sizes.items())

    def __add__(self, other):
        """Two layers, over the same tokens; ValueError if they are not."""
        if self.tokens != other.tokens:
            raise ValueError(
                f"Layers of one trace have the same tokens, not {self.tokens} and {other.tokens}."
            )
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Simulated(**sums | {"tokens": self.tokens})


def simulate(active, bundle_bytes, *, k=0, order=None, friends=None, gap=0):
    """Replay a trace: what would have been read for it?

    active : bool (T, F);  bundle_bytes: of one neuron;  k: window length, 0 for none
    order  : int (F,), the neuron at each place; None for the model's own order
    friends: int (F,), to store in the model's order bundles of two, each neuron with its friend. A
             friend that the token does not need is dropped: DRAM holds the same as without friends
    gap    : see `merged_reads`
    returns: Simulated
    """
    T, F = active.shape
    new = missing(active, k)
    placed, place_bytes = new, bundle_bytes
    if friends is not None:
        placed, place_bytes = chosen_pairs(new, friends), 2 * bundle_bytes
    elif order is not None:
        placed = new[:, order]
    reads = merged_reads(placed, place_bytes, gap)
    sizes, counts = np.unique(reads[:, 2] - reads[:, 1], return_counts=True)
    return Simulated(
        tokens=T,
        wanted=int(new.sum()),
        bytes_wanted=int(new.sum()) * bundle_bytes,
        held=int((active | used_before(active, k)).sum()),
        stored_bytes=F * place_bytes,
        sizes=Counter(dict(zip(sizes.tolist(), counts.tolist(), strict=True))),
    )


def chosen_pairs(new, friends):
    """`pairs_to_read` for every token: bool (T, F), True where the bundle of two is read."""
    chosen = np.zeros_like(new)
    for row, wanted in zip(chosen, new, strict=True):
        row[pairs_to_read(np.flatnonzero(wanted), friends)] = True
    return chosen


def fate_of_friends(active, friends, k=0):
    """What became of the friends that bundles of two brought along.

    returns: dict of counts; they add up to the bundles of two that were read
        "useful" the token needed it, and nothing else brought it
        "again"  it was in DRAM (used by the k tokens before), or came with another read as well
        "unused" the token did not need it
    """
    new, before = missing(active, k), used_before(active, k)
    fates = Counter(useful=0, again=0, unused=0)
    for chosen, wanted, held in zip(chosen_pairs(new, friends), new, before, strict=True):
        for friend, times in Counter(friends[chosen].tolist()).items():
            first = 0 if chosen[friend] or held[friend] else 1  # the one that is no repetition
            fates["useful" if wanted[friend] else "unused"] += first
            fates["again"] += times - first
    return dict(fates)
