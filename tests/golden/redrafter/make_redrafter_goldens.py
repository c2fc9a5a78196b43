"""Records what Apple's released ReDrafter computes from tiny random checkpoints.

By hand, beside a checkout of github.com/apple/ml-recurrent-drafter (README.md says which):

    python tests/golden/redrafter/make_redrafter_goldens.py CHECKOUT

It calls that code and holds none of it. Writes, beside itself, a checkpoint a case, as that code
saves it, and one file of numbers a case.
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = Path(__file__).parent
VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0"}

# case -> config of its drafter
CASES = {
    "square": dict(vocab_size=96, hidden_size=10, exit_dim=20, num_draft_layers=2, rnn=True),
    "projected": dict(vocab_size=64, hidden_size=12, exit_dim=18, num_draft_layers=1, rnn=True),
    "no-rnn": dict(vocab_size=30, hidden_size=8, exit_dim=16, num_draft_layers=3, rnn=False),
}
SHAPES = ((1, 5), (3, 2), (4, 5), (10, 4), (64, 5))  # (W, N)

SAMPLING = ("uniforms", "released_accepted", "released_beam", "released_law", "all_log_probs")

GENERATION = dict(vocab_size=13, hidden_size=16, exit_dim=24, num_draft_layers=1, rnn=True)
LLAMA = dict(
    vocab_size=13, hidden_size=16, intermediate_size=22, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96, rms_norm_eps=1e-5,
    tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GENERATED_SHAPES = ((1, 4), (3, 4), (8, 3), (12, 5))
GENERATED = 60  # tokens, the prompt among them


def released(checkout):
    """The modules of the released code, without its package's __init__ (it wants a chat UI)."""
    package = types.ModuleType("recurrent_drafting")
    package.__path__ = [str(Path(checkout) / "recurrent_drafting")]
    sys.modules["recurrent_drafting"] = package
    import recurrent_drafting.configuration_drafter as configuration
    import recurrent_drafting.modeling_drafter as drafter
    import recurrent_drafting.modeling_llama as llama
    import recurrent_drafting.recurrent_drafting as loop
    import recurrent_drafting.stats as stats
    import recurrent_drafting.tree_attention as tree

    return types.SimpleNamespace(
        configuration=configuration, drafter=drafter, llama=llama, loop=loop, stats=stats, tree=tree
    )  # fmt: skip


def randomize(module, seed):
    """Every number of a module at random; logits spread by 1 and more."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            numbers = rng.standard_normal(tuple(parameter.shape))
            if parameter.ndim == 2 and "embed" not in name:
                numbers *= 1.6 / parameter.shape[1] ** 0.5
            elif "norm" in name:
                numbers = 1 + 0.2 * numbers
            else:
                numbers *= 0.7
            parameter.copy_(torch.tensor(numbers, dtype=torch.float32))


def numbers(tensor, dtype):
    return np.ascontiguousarray(tensor.detach().numpy().astype(dtype))


def record_case(code, name, seed):
    """Beams, packed trees and acceptance of one drafter, for each beam shape."""
    config = code.configuration.DrafterConfig(**CASES[name])
    drafter = code.drafter.Drafter(config)
    randomize(drafter, seed)
    drafter.save_pretrained(HERE / name)
    V, D = config.vocab_size, config.hidden_size
    rng = np.random.default_rng(seed + 1)
    embedding = torch.nn.Embedding(V, D)
    randomize(embedding, seed + 2)
    arrays = {"embedding": numbers(embedding.weight, np.float32)}
    for W, N in SHAPES:
        hidden = torch.tensor(rng.standard_normal((1, D)), dtype=torch.float32)
        token = torch.tensor(rng.integers(0, V, 1), dtype=torch.long)
        with torch.inference_mode():
            beams, log_probs = drafter.beam_search_candidates(
                hidden, token, embedding, code.drafter.BeamShape(W, N)
            )
        drafted = torch.gather(log_probs, 3, beams[:, :, 1:, None])[..., 0]
        packed, unpacker, mask, depths = code.tree.pack(beams, torch.ones((1, 7), dtype=torch.long))
        case = {
            "hidden": numbers(hidden[0], np.float32),
            "token": numbers(token[0], np.int64),
            "beams": numbers(beams[0], np.int16),
            "log_probs": numbers(drafted[0], np.float32),
            "packed": numbers(packed[0], np.int16),
            "unpacker": numbers(unpacker[0], np.int16),
            # (n, 7 + n) over seven tokens before and the tree; eight to the byte
            "mask": np.packbits(numbers(mask[0], np.bool_)),
            "depths": numbers(depths[0], np.int16),
        }
        if W <= 10:
            case |= acceptance(code, beams, log_probs, unpacker, V, rng)
        if W > 4:
            case = {key: case[key] for key in case if key not in SAMPLING}
        arrays |= {f"{W}x{N}/{key}": array for key, array in case.items()}
    save_file(arrays, HERE / f"{name}.safetensors")


def acceptance(code, beams, log_probs, unpacker, V, rng):
    """What is accepted when the model's logits follow one beam for 0, 1, … N-1 tokens."""
    (_, W, N), n = beams.shape, int(unpacker.max()) + 1
    kept = {"logits": [], "accepted": [], "beam": [], "node": [], "next": []}
    kept |= {"uniforms": [], "released_accepted": [], "released_beam": [], "released_law": []}
    for wanted in range(N):
        logits = rng.integers(-40, 40, (n, V)).astype(np.float32) / 8
        row = int(rng.integers(0, W))
        for depth in range(wanted):
            logits[unpacker[0, row, depth], beams[0, row, depth + 1]] = 6
        packed = torch.tensor(logits)[None]
        beams_of_logits = code.tree.unpack(packed, unpacker)
        # As hidden state every node has its number, so that the accepted state says which it is.
        nodes = torch.arange(n, dtype=torch.float32).reshape(1, n, 1)
        nodes = code.tree.unpack(nodes, unpacker)
        by_model = torch.argmax(beams_of_logits, dim=-1)
        accepted, beam = code.loop._greedy_choose_from_candidates(beams, by_model)
        node, following = code.loop._greedy_prepare_next_input(by_model, nodes, beam, accepted)
        kept["logits"].append((logits * 8).astype(np.int8))
        kept["accepted"].append(int(accepted))
        kept["beam"].append(int(beam))
        kept["node"].append(int(node))
        kept["next"].append(int(following))

        # The sampling rule, with its random numbers seen and its last law caught.
        model_log_probs = torch.log_softmax(beams_of_logits, dim=-1)
        torch.manual_seed(wanted)
        uniforms = torch.rand((1, W, N - 1))
        torch.manual_seed(wanted)
        accepted, beam = code.loop._choose_from_candidates(beams, model_log_probs, log_probs)
        laws = []
        code.loop.dist = types.SimpleNamespace(
            Categorical=lambda probs, seen=laws: (
                seen.append(probs),
                types.SimpleNamespace(sample=lambda: torch.zeros(1)),
            )[1]
        )
        code.loop._prepare_next_input(log_probs, model_log_probs, nodes, beam, accepted)
        law = laws[0][0] / laws[0][0].sum()
        kept["uniforms"].append(numbers(uniforms[0], np.float32))
        kept["released_accepted"].append(int(accepted))
        kept["released_beam"].append(int(beam))
        kept["released_law"].append(numbers(law, np.float32))
    return {key: np.array(values) for key, values in kept.items()} | {
        "all_log_probs": numbers(log_probs[0], np.float32)
    }


def record_generation(code, seed):
    """Greedy texts of a tiny Llama with a drafter, and how many tokens each step added."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = transformers.LlamaConfig(**LLAMA, rope_parameters=rope)
    config.rope_theta = 10000.0  # where the released code looks
    model = code.llama.LlamaForCausalLM(config).eval()
    randomize(model, seed)
    drafter = code.drafter.Drafter(code.configuration.DrafterConfig(**GENERATION))
    randomize(drafter, seed + 1)
    drafter.save_pretrained(HERE / "drafter")
    (HERE / "llama").mkdir(exist_ok=True)
    weights = {name: numbers(t, np.float32) for name, t in model.named_parameters()}
    save_file(weights, HERE / "llama" / "model.safetensors", {"format": "pt"})
    keys = {"model_type": "llama", "hidden_act": "silu", "rope_theta": 10000.0, **LLAMA}
    (HERE / "llama" / "config.json").write_text(json.dumps(keys, indent=2) + "\n")

    texts = []
    loop = code.loop.RecurrentDrafting(model, drafter)
    rng = np.random.default_rng(seed + 2)
    for W, N in GENERATED_SHAPES:
        prompt = rng.integers(0, 13, 6).tolist()
        steps = list(
            loop.generate(
                code.stats.Ledger(),
                torch.tensor([prompt]),
                GENERATED,
                code.drafter.BeamShape(W, N),
                code.loop.SamplingArgs(1.0, True),
                code.loop.SpecialTokens(pad=-1, eos=None),
            )
        )
        texts.append(
            {
                "width": W,
                "length": N,
                "prompt": prompt,
                "ids": steps[-1][0].tolist(),
                "tokens_after_each_step": [step.shape[1] for step in steps],
            }
        )
        print(W, N, "steps", len(steps), "distinct", len(set(texts[-1]["ids"])))
    (HERE / "generation.json").write_text(json.dumps(texts) + "\n")


def main(checkout):
    """Write all of it."""
    found = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    assert found == VERSIONS, f"these goldens were made with {VERSIONS}, and here is {found}"
    torch.set_num_threads(1)
    code = released(checkout)
    for number, name in enumerate(CASES):
        record_case(code, name, seed=100 * number)
    record_generation(code, seed=900)


if __name__ == "__main__":
    main(sys.argv[1])
