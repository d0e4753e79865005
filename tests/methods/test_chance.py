"""Random choices: the same for every image and run, another one per seed and place, and fair."""

import pytest
import torch

from mtrkit.ops import shuffled
from tests.methods import plain
from tests.methods.host import Host, assert_same, run, tokens
from tests.methods.plain import Fate

CHANCE = [
    ("random", {}),
    ("random", {"operation": "merge"}),
    ("rmeeto", {"sources": "random"}),
    ("rmeeto", {"partner": "random"}),
    ("rmeeto", {"grouping": "random"}),
    ("rmeeto", {"order": "shuffle", "shuffle_ratio": 0.5}),
    ("rmeeto", {"sources": "random", "partner": "random", "operation": "prune", "order": "leave"}),
]
chances = pytest.mark.parametrize(("method", "options"), CHANCE)


@chances
def test_runs_repeat_and_seeds_differ(method, options):
    start = tokens(2, 25, 0)
    results = [run(method, start, (12,), (5, 4, 3), 0, **options, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][1].slot, results[2][1].slot)


@chances
def test_global_randomness_is_neither_used_nor_touched(method, options):
    start = tokens(2, 25, 0)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = run(method, start, (12,), (5,), 0, **options)[1].slot
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(run(method, start, (12,), (5,), 0, **options)[1].slot, first)


@pytest.mark.parametrize("operation", ["prune", "merge"])
def test_random_removes_the_same_patches_of_every_image(operation):
    _, stream, decisions = run("random", tokens(3, 25, 1), (12,), (6,), 0, operation=operation, seed=5)
    kept = decisions[0].token_map.kept
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert (stream.slot[:, 12] >= 0).all()


def test_random_removes_every_patch_about_as_often():
    start = tokens(1, 25, 1)
    gone = torch.zeros(25)
    for seed in range(300):
        _, stream, _ = run("random", start, (12,), (8,), 0, seed=seed)
        gone += stream.slot[0] < 0
    assert gone[12] == 0
    assert ((gone.sum() / 24 - gone[gone > 0]).abs() < 5 * (300 * 2 / 9) ** 0.5).all()


def test_random_merges_into_the_most_similar_that_stays():
    def reduce(image, count, operation):
        assert operation == "merge"
        gone = [i for i in image.patches if i not in stays]
        assert len(gone) == count
        ranked = plain.links(image.hidden, gone, [i for i in image.patches if i in stays], plain.cosine)
        return plain.after(image, Fate(sorted(stays), {a: b for _, a, b in ranked}), plain.by_size)

    _, _, decisions = run("random", tokens(1, 25, 2), (12,), (6,), 2)
    stays = set(decisions[0].token_map.kept[0].tolist())
    assert_same("random", reduce, batch=2, counts=(6,), seed=2, operation="merge")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("class_position", ["exact", "floor"])
def test_shuffling_is_the_method_on_another_order(share, class_position):
    """The plain loop on the shuffled rows; the class token stands where it stood."""

    def reduce(image, count, **options):
        every, special = torch.arange(len(image.size))[None], torch.tensor([image.classes])
        order = shuffled(every, special, share, 0, 3)[0].tolist()
        assert [order[c] for c in image.classes] == image.classes
        image.hidden, image.residual = image.hidden[order], image.residual[order]
        image.size, image.origin = [image.size[i] for i in order], [image.origin[i] for i in order]
        del options["order"], options["shuffle_ratio"]
        return plain.rmeeto(image, count, **options)

    options = {"order": "shuffle", "shuffle_ratio": share, "class_position": class_position}
    assert_same("rmeeto", reduce, **options)


@pytest.mark.parametrize("seed", range(4))
def test_random_groups_are_halves(seed):
    """All of one half can leave, and then the other half is what is left."""
    leaving = []
    for sample_seed in range(2):
        _, stream, decisions = run("rmeeto", tokens(2, 25, sample_seed), (12,), (12,), 0, grouping="random", seed=seed)
        merged = decisions[0].token_map.merged.sort(dim=1).values
        assert torch.equal(merged[0], merged[1])
        leaving.append(merged[0].tolist())
        assert (stream.size.sum(dim=1) == 25).all()
    assert leaving[0] == leaving[1] and 12 not in leaving[0]


def test_random_sources_keep_their_nearest_partner_and_random_partners_are_targets():
    start = tokens(2, 25, 3)
    target = {}
    for name, options in {"usual": {}, "sources": {"sources": "random"}, "partner": {"partner": "random"}}.items():
        _, _, decisions = run("rmeeto", start, (12,), (5,), 3, **options)
        to = decisions[0].token_map
        partner = to.kept.gather(1, to.slot.gather(1, to.merged))
        target[name] = [
            dict(zip(*pair, strict=True)) for pair in zip(to.merged.tolist(), partner.tolist(), strict=True)
        ]
    hidden = Host(3).block(start, torch.zeros_like(start))[0].numpy()
    patches = [i for i in range(25) if i != 12]
    for i in range(2):
        nearest = {a: b for _, a, b in plain.links(hidden[i], patches[0::2], patches[1::2], plain.cosine)}
        assert all(nearest[a] == b for a, b in target["sources"][i].items())
        assert target["partner"][i].keys() == target["usual"][i].keys()
        assert set(target["partner"][i].values()) <= set(patches[1::2])
    assert target["sources"][0].keys() == target["sources"][1].keys()
    assert target["partner"][0] != target["usual"][0]
