"""Friends: every count against brute force, structure that was planted, and faults to be seen."""

import itertools
import json
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers_flash import random_trace

import tinyflash
from tinyflash.bench import friends as bench
from tinyflash.flash import coactivation
from tinyflash.flash.coactivation import (
    VIRTUAL_NVME,
    chosen_pairs,
    closest_friends,
    coactivation_counts,
    fate_of_friends,
    fires_with_friend,
    friends_order,
    gap_worth_reading,
    io_ms,
    merged_reads,
    missing,
    pairs_to_read,
    share_befriending_the_busiest,
    simulate,
)
from tinyflash.flash.reading.reads import neighbors
from tinyflash.flash.store.bundles import BLOCK

TRACES = 300


def traces(seed=0, most_neurons=9):
    """Small random traces, each with a window length."""
    rng = np.random.default_rng(seed)
    for _ in range(TRACES):
        F, tokens, k = rng.integers((2, 1, 0), (most_neurons, 12, 4))
        yield random_trace(rng, F, tokens), int(k), rng


def sets_of(active):
    return [set(np.flatnonzero(row).tolist()) for row in active]


def before(sets, t, k):
    """What DRAM holds when token t comes, by the definition."""
    return set().union(*sets[max(0, t - k) : t])


# Counting who fires with whom.


def test_counts_and_friends_are_those_of_brute_force():
    for active, _, _ in traces():
        sets, F = sets_of(active), active.shape[1]
        counts = coactivation_counts(active)
        for i, j in itertools.product(range(F), repeat=2):
            assert counts[i, j] == sum(i in used and j in used for used in sets)
        friends = closest_friends(counts)
        shares = fires_with_friend(counts, friends)
        for i, friend in enumerate(friends.tolist()):
            together = {j: sum({i, j} <= used for used in sets) for j in range(F) if j != i}
            most = max(together.values())
            if most == 0:
                assert friend == i and np.isnan(shares[i])
            else:
                assert friend == min(j for j in together if together[j] == most)
                alone = sum(i in used for used in sets)
                assert shares[i] == pytest.approx(together[friend] / alone)


def test_a_neuron_that_always_fires_is_everybodys_friend():
    rng = np.random.default_rng(1)
    active = rng.random((400, 200)) < 0.05
    active[:, 17] = True
    counts = coactivation_counts(active)
    friends = closest_friends(counts)
    assert (np.delete(friends, 17) == 17).all()
    assert share_befriending_the_busiest(counts, friends, 0.01) >= 199 / 200
    assert np.delete(fires_with_friend(counts, friends), 17) == pytest.approx(1)


def test_share_befriending_the_busiest_counts_neurons_with_friends():
    active = np.zeros((5, 6), dtype=bool)
    active[:4, :2] = True  # 0 and 1 are each other's, 5 is alone, 2 and 3 once with 0
    active[4, 5] = active[0, 2] = active[1, 3] = True
    counts = coactivation_counts(active)
    friends = closest_friends(counts)
    assert friends.tolist() == [1, 0, 0, 0, 4, 5]
    assert share_befriending_the_busiest(counts, friends, 1 / 6) == 3 / 4  # 0 is the busiest


# The order on flash.


def plain_chains(counts):
    """The same greedy links by sets of chains, slowly: which pairs are linked."""
    F = len(counts)
    chains, linked = [[i] for i in range(F)], set()
    pairs = sorted(itertools.combinations(range(F), 2), key=lambda p: (-counts[p], p))
    for i, j in pairs:
        mine, other = (next(c for c in chains if n in c) for n in (i, j))
        if counts[i, j] == 0 or mine is other:
            continue
        if i in (mine[0], mine[-1]) and j in (other[0], other[-1]):
            mine = mine if mine[-1] == i else mine[::-1]
            other = other if other[0] == j else other[::-1]
            chains = [c for c in chains if not {i, j} & set(c)] + [mine + other]
            linked.add((i, j))
    return chains, linked


def check_order(make):
    """Every neuron once; the chains of the slow greedy, unbroken, the busiest first."""
    for active, _, _ in traces():
        counts = coactivation_counts(active)
        order = make(counts).tolist()
        assert sorted(order) == list(range(len(counts)))
        chains, _ = plain_chains(counts)
        starts = []
        for chain in chains:
            places = [order.index(n) for n in chain]
            assert places in (
                list(range(min(places), max(places) + 1)),
                list(range(max(places), min(places) - 1, -1)),
            )
            starts.append((min(places), np.mean([counts[n, n] for n in chain])))
        heats = [heat for _, heat in sorted(starts)]
        assert all(a >= b for a, b in itertools.pairwise(heats))


def test_the_order_is_that_of_greedy_chains():
    check_order(friends_order)


@pytest.mark.parametrize(
    "faulty",
    [
        lambda counts: np.arange(len(counts), dtype=np.int64),
        lambda counts: np.argsort(-counts.diagonal(), kind="stable"),
        lambda counts: np.argsort(friends_order(counts)),  # neuron -> place, the wrong way around
        lambda counts: friends_order(-counts + counts.max()),  # the least active pairs first
    ],
)
def test_the_check_of_orders_sees_faults(faulty):
    with pytest.raises(AssertionError):
        check_order(faulty)


GROUPS, EACH, BUNDLE = 16, 8, 4 * BLOCK


def planted(rng, tokens=400):
    """Groups of neurons that fire together, scattered over the layer: bool (T, F)."""
    group = rng.permutation(np.repeat(np.arange(GROUPS, dtype=np.int64), EACH))
    return (rng.random((tokens, GROUPS)) < 0.1)[:, group], group


def test_planted_groups_become_neighbors():
    active, group = planted(np.random.default_rng(2))
    half = len(active) // 2
    order = friends_order(coactivation_counts(active[:half]))
    assert len(list(itertools.groupby(group[order]))) == GROUPS
    tested = active[half:]
    scattered, together = (simulate(tested, BUNDLE, order=o) for o in (None, order))
    groups_used = tested.sum() / EACH
    assert 0.8 * groups_used <= together.reads <= groups_used  # some groups touch
    assert together.reads < scattered.reads / 5
    assert together.bytes_read == scattered.bytes_read  # every neuron once, no gaps
    assert io_ms(together.sizes) < io_ms(scattered.sizes) / 1.5


def test_independent_neurons_gain_nothing_on_tokens_that_taught_no_order():
    rng = np.random.default_rng(3)
    active = rng.random((600, 128)) < 0.1  # alike: 'busiest first' would be an order, too
    learnt, tested = active[:300], active[300:]
    order = friends_order(coactivation_counts(learnt))
    own, new = (simulate(half, BUNDLE, order=order).reads for half in (learnt, tested))
    before_, other = (simulate(half, BUNDLE).reads for half in (learnt, tested))
    assert abs(new / other - 1) < 0.03
    assert own / before_ < 0.9  # the tokens that it was learnt from flatter it: hence two halves


# Bundles of two.


def fewest_by_trying(wanted, friends):
    """The fewest bundles of two, of any neurons, that bring all wanted ones."""
    F = len(friends)
    for n in range(F + 1):
        for chosen in itertools.combinations(range(F), n):
            if wanted <= set(chosen) | {int(friends[i]) for i in chosen}:
                return n
    raise AssertionError("each neuron's own bundle brings it")


def check_pairs(choose):
    """Nobody is forgotten, and fewer bundles would not do, for any map of friends."""
    rng = np.random.default_rng(4)
    for _ in range(TRACES):
        F = int(rng.integers(1, 8))
        friends = rng.integers(0, F, F)  # rings of any length, and oneself
        wanted = np.flatnonzero(rng.random(F) < rng.random())
        chosen = choose(wanted, friends)
        assert len(chosen) == len(set(chosen))
        assert set(wanted.tolist()) <= set(chosen) | set(friends[chosen].tolist())
        assert len(chosen) == fewest_by_trying(set(wanted.tolist()), friends)


def test_the_fewest_bundles_of_two_bring_everyone():
    check_pairs(pairs_to_read)


def first_come(wanted, friends):
    chosen, brought = [], set()
    for i in wanted.tolist():
        if i not in brought:
            chosen.append(i)
            brought |= {i, int(friends[i])}
    return chosen


@pytest.mark.parametrize(
    "faulty", [lambda wanted, friends: wanted.tolist(), first_come, lambda w, f: w.tolist()[:-1]]
)
def test_the_check_of_bundles_of_two_sees_faults(faulty):
    with pytest.raises(AssertionError):
        check_pairs(faulty)


def test_fates_are_those_of_brute_force():
    for active, k, _ in traces(5):
        sets, friends = sets_of(active), closest_friends(coactivation_counts(active))
        expected = Counter(useful=0, again=0, unused=0)
        for t, used in enumerate(sets):
            in_dram = before(sets, t, k)
            chosen = pairs_to_read(sorted(used - in_dram), friends)
            arrived = in_dram | set(chosen)
            for i in chosen:
                friend = int(friends[i])
                expected[
                    "again" if friend in arrived else "useful" if friend in used else "unused"
                ] += 1
                arrived.add(friend)
        assert fate_of_friends(active, friends, k) == expected


# Reading.


def blocks_read(places, bundle_bytes, gap):
    """(first, past) byte of each read, from single blocks: slowly."""
    touched = {
        block
        for p in places
        for block in range(p * bundle_bytes // BLOCK, ((p + 1) * bundle_bytes - 1) // BLOCK + 1)
    }
    reads = []
    for block in sorted(touched):
        if reads and block * BLOCK - reads[-1][1] <= gap:
            reads[-1][1] = (block + 1) * BLOCK
        else:
            reads.append([block * BLOCK, (block + 1) * BLOCK])
    return [tuple(read) for read in reads]


def check_simulation(simulate):
    """Everything that a simulation says, against sets of neurons and single blocks."""
    for active, k, rng in traces(6, most_neurons=24):
        F = active.shape[1]
        sets, order = sets_of(active), rng.permutation(F)
        bundle_bytes, gap = int(rng.choice((700, 3456, 8192))), int(rng.choice((0, 4096, 12288)))
        friends = rng.integers(0, F, F)
        place = {neuron: p for p, neuron in enumerate(order.tolist())}
        sizes = {"order": Counter(), "friends": Counter()}
        wanted = held = 0
        for t, used in enumerate(sets):
            new = used - before(sets, t, k)
            wanted, held = wanted + len(new), held + len(before(sets, t, k) | used)
            for first, past in blocks_read([place[i] for i in new], bundle_bytes, gap):
                sizes["order"][past - first] += 1
            pairs = pairs_to_read(sorted(new), friends)
            for first, past in blocks_read(pairs, 2 * bundle_bytes, gap):
                sizes["friends"][past - first] += 1
        for name, layout in {"order": order, "friends": friends}.items():
            found = simulate(active, bundle_bytes, k=k, gap=gap, **{name: layout})
            assert found.sizes == sizes[name]
            assert (found.wanted, found.held, found.tokens) == (wanted, held, len(sets))
            assert found.bytes_wanted == wanted * bundle_bytes
            assert found.bytes_read == sum(sizes[name].elements()) >= found.bytes_wanted
            assert found.reads == sum(sizes[name].values())
            assert found.stored_bytes == F * bundle_bytes * (2 if name == "friends" else 1)


def test_simulation_is_that_of_brute_force():
    check_simulation(simulate)


@pytest.mark.parametrize(
    "name, faulty",
    [
        ("used_before", lambda active, k: right["used_before"](active, k + 1)),
        ("used_before", lambda active, k: right["used_before"](active, max(k - 1, 0))),
        ("merged_reads", lambda p, size, gap: right["merged_reads"](p, size, 0)),
        ("merged_reads", lambda p, size, gap: right["merged_reads"](p, size, gap + BLOCK)),
        ("merged_reads", lambda p, size, gap: right["merged_reads"](p.any(axis=0)[None], size)),
        ("round_up", lambda offsets: offsets),
        ("chosen_pairs", lambda new, friends: new),
    ],
)
def test_the_check_of_simulations_sees_faults(name, faulty, monkeypatch):
    monkeypatch.setattr(coactivation, name, faulty)
    with pytest.raises(AssertionError):
        check_simulation(simulate)


right = {name: getattr(coactivation, name) for name in ("used_before", "merged_reads")}


def test_an_order_the_wrong_way_around_is_seen():
    def faulty(active, bundle_bytes, *, order=None, **settings):
        order = None if order is None else np.argsort(order)
        return simulate(active, bundle_bytes, order=order, **settings)

    with pytest.raises(AssertionError):
        check_simulation(faulty)


def test_without_gaps_reads_are_those_of_the_reader():
    rng = np.random.default_rng(7)
    for _ in range(TRACES):
        active = rng.random((1, 60)) < rng.random()
        bundle_bytes = int(rng.choice((700, 3456, 8192)))
        places = np.flatnonzero(active)
        if len(places):
            begins = places * bundle_bytes
            cuts = neighbors(begins, begins + bundle_bytes)
            reads = merged_reads(active, bundle_bytes)
            assert reads[:, 1].tolist() == (begins[cuts[:-1]] // BLOCK * BLOCK).tolist()


def test_every_wanted_neuron_is_read_or_held():
    for active, k, rng in traces(8):
        F = active.shape[1]
        order, friends = rng.permutation(F), rng.integers(0, F, F)
        sets, new = sets_of(active), missing(active, k)
        reads = merged_reads(new[:, order], 5000, 8192)
        pairs = chosen_pairs(new, friends)
        for t, used in enumerate(sets):
            held = before(sets, t, k)
            mine = [(first, past) for token, first, past in reads.tolist() if token == t]
            by_place = {
                int(order[p])
                for p in range(F)
                if any(first <= 5000 * p and 5000 * (p + 1) <= past for first, past in mine)
            }
            by_pair = set(np.flatnonzero(pairs[t])) | set(friends[pairs[t]].tolist())
            assert used <= held | by_place
            assert used <= held | by_pair


def test_projected_time_and_gaps():
    kib = 1024
    assert io_ms({16 * kib: 1000}) == pytest.approx(1000 * 16 * kib / 1.76e6)
    assert io_ms({4 * kib: 3, 64 * kib: 2}) == pytest.approx(
        3 * 4 * kib / 0.70e6 + 2 * 64 * kib / 2.86e6
    )
    for bundle in (768, 4 * kib, 16 * kib, 64 * kib):
        gap, b = gap_worth_reading(bundle, VIRTUAL_NVME), -(-bundle // BLOCK) * BLOCK
        assert gap % BLOCK == 0
        assert io_ms({2 * b + gap: 1}) <= io_ms({b: 2}) < io_ms({2 * b + gap + BLOCK: 1})


def test_layers_are_added_only_over_the_same_tokens():
    active = np.eye(4, dtype=bool)
    one, both = simulate(active, BLOCK), simulate(active, BLOCK) + simulate(~active, BLOCK)
    assert both.tokens == 4 and both.wanted == 4 + 12 and both.reads == 4 + 4 + 2
    with pytest.raises(ValueError, match="same tokens"):
        one + simulate(active[:3], BLOCK)


# The embedded model.


@pytest.fixture(scope="module")
def traces_of_default():
    model = tinyflash.load("default")
    text = (model.path.parent / "heldout.txt").read_text(encoding="utf-8")
    return model, bench.recorded_activity(model, model.encode(text[:8000])[:700])


def test_recorded_activity_is_what_the_model_computes(traces_of_default):
    model, active = traces_of_default
    text = (model.path.parent / "heldout.txt").read_text(encoding="utf-8")
    seen = {}
    ids = model.encode(text[:8000])[:512]
    model.logits(ids, tap=lambda name, x: seen.update({name: x}) if name.endswith("act") else None)
    for i, layer in enumerate(active):
        assert layer.shape == (700, model.config.ffn_width)
        assert np.array_equal(layer[:512], seen[f"layers.{i}.ffn.act"] != 0)


def test_a_threshold_lets_a_tenth_of_the_first_half_through():
    model = tinyflash.load("default")
    model.config = replace(model.config, activation="silu")
    ids = list(range(3, 203))
    layers = bench.recorded_activity(model, ids)
    other = bench.recorded_activity(model, ids[:100] + ids[:100])
    for layer, same_learnt in zip(layers, other, strict=True):
        assert layer[:100].mean() == pytest.approx(0.1, abs=0.001)
        assert np.array_equal(layer[:100], same_learnt[:100])  # the rest has no say in it
        assert not np.array_equal(layer[100:], same_learnt[100:])
    model.flash = "an engine"
    with pytest.raises(ValueError, match="all in DRAM"):
        bench.recorded_activity(model, ids)


def test_friends_in_bundles_lose_and_friends_side_by_side_win(traces_of_default):
    _, active = traces_of_default
    result = bench.measure(active, 768)
    rows = {
        (row["k"], row["layout"]): row
        for row in result["reading"]
        if row["bundle_bytes"] == bench.OPT_BUNDLE and row["gap"] == 0
    }
    for k in bench.WINDOWS:
        pairs, own, friends = (
            rows[k, name]
            for name in ("each with its friend", "model's order", "friends side by side")
        )
        assert pairs["bytes_read"] > 1.7 * own["bytes_read"]
        assert pairs["ms"] > own["ms"] > friends["ms"]
        assert pairs["stored_bytes"] == 2 * own["stored_bytes"]
        assert friends["reads"] < 0.95 * rows[k, "random order"]["reads"]
        assert abs(own["reads"] / rows[k, "random order"]["reads"] - 1) < 0.05
        assert sum(result["friends"]["fate"][k].values()) == pytest.approx(1)
        assert result["friends"]["fate"][k]["again"] > 0.7


def run_bench(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["coactivation", *map(str, arguments)])
    bench.main()


def test_the_benchmark_writes_json_and_tables(monkeypatch, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("My fellow citizens, we have much to do together. " * 6, encoding="utf-8")
    run_bench(monkeypatch, "--text", text, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "default" and 20 < result["tokens"] < 200
    assert len(result["reading"]) == 2 * 2 * (1 + 2 * 4)
    run_bench(monkeypatch, "default", "--text", text)
    out = capsys.readouterr().out
    assert "closest friends" in out and "busiest first" in out


@pytest.mark.parametrize("content", [None, "short"])
def test_texts_that_teach_nothing_are_refused_in_one_sentence(
    content, monkeypatch, tmp_path, capsys
):
    text = tmp_path / "text.txt"
    if content:
        text.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as exit:
        run_bench(monkeypatch, "--text", text)
    assert exit.value.code == 2
    assert str(text) in capsys.readouterr().err
