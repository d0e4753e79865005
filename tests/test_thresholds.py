"""Merging by a threshold: as many tokens leave as have similar ones, and the FLOPs are those of what has run."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mtrkit
from mtrkit.errors import InputError, OptionError, StreamError
from tests.helpers.families import FAMILIES
from tests.test_matrix import run

IMAGES = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(7))
METHODS = ("tome", "rmeeto", "pumer", "neighbor", "runs", "utr")
LAYERS = [2, 3, 4]


def tokens_of(model, images):
    """Tokens behind each reducing block, in one pass."""
    with torch.no_grad(), mtrkit.trace_reduction(model) as trace:
        model(images)
    return {stage.layer: stage.num_kept for stage in trace.stages}


@pytest.mark.parametrize(("family", "method"), [*(("vim", method) for method in METHODS), ("hustvl_vim", "rmeeto")])
def test_limits(family, method):
    """Nothing reaches infinity, and everything minus infinity: half of the tokens, as ever may leave."""
    model = FAMILIES[family]()
    dense = run(model, IMAGES[:2])
    mtrkit.apply_reduction(model, method, threshold=float("inf"), layers=LAYERS)
    assert torch.allclose(run(model, IMAGES[:2]), dense, atol=1e-5) and tokens_of(model, IMAGES[:2]) == {}
    mtrkit.apply_reduction(model, method, threshold=-float("inf"), layers=LAYERS)
    assert tokens_of(model, IMAGES[:2]) == {2: 33, 3: 17, 4: 9}
    found = run(model, IMAGES[:2])
    mtrkit.apply_reduction(model, method, tokens=[65, 33, 17, 9, 9, 9])
    assert torch.equal(run(model, IMAGES[:2]), found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.7, 0.71])  # 48 and 47 of 160 links: 9.6 and 9.4 in the mean
def test_as_many_leave_as_have_a_similar_token_in_the_mean(method, share):
    model, strengths = FAMILIES["vim"](), []
    mtrkit.apply_reduction(model, method, threshold=-float("inf"), layers=[2])
    vars(model)["_mtrkit_reduction"].watchers.append(lambda layer, found: strengths.append(found))
    run(model, IMAGES[:5])
    threshold = float(strengths[0].quantile(share))
    mtrkit.apply_reduction(model, method, threshold=threshold, layers=[2])
    similar = (strengths[0] >= threshold).sum(dim=1)
    assert similar.min() < similar.max()
    assert tokens_of(model, IMAGES[:5])[2] == 65 - round(similar.double().mean().item())
    assert [tokens_of(model, image[None]).get(2, 65) for image in IMAGES[:5]] == (65 - similar).tolist()
    found = run(model, IMAGES[:5])
    mtrkit.apply_reduction(model, method, tokens=[65, *[65 - round(similar.double().mean().item())] * 5])
    assert torch.equal(run(model, IMAGES[:5]), found)


@pytest.mark.parametrize("family", ["vim", "vim_mambar", "timm_vit"])
def test_flops_are_the_mean_of_what_has_run(family):
    method = "tome" if family == "timm_vit" else "rmeeto"
    model = FAMILIES[family]()
    thresholds = mtrkit.find_thresholds(model, IMAGES, 0.3, method=method, layers=LAYERS, batch_size=1)
    mtrkit.apply_reduction(model, method, threshold=thresholds, layers=LAYERS)
    before = mtrkit.reduction_info(model)
    assert before.measured == 0 and before.ratio_reached > 0.3 and "none has run yet" in str(before)
    expected, counts = [], []
    for image in IMAGES:
        kept = tokens_of(model, image[None])
        counts.append(kept)
        now, tokens = mtrkit.reduction_info(model).num_tokens, []
        for block in range(1, 7):
            now = kept.get(block, now)
            tokens.append(now)
        twin = mtrkit.apply_reduction(copy.deepcopy(model), method, tokens=tokens)
        expected.append(mtrkit.count_flops(twin).total)
    info = mtrkit.reduction_info(model)
    assert info.measured == 24 and len({tuple(kept.items()) for kept in counts}) > 1
    assert info.flops_reduced.total == pytest.approx(sum(expected) / 24, rel=0.004)  # where nothing leaves it is looked
    assert mtrkit.count_flops(model).total == info.flops_reduced.total
    assert info.ratio_reached == pytest.approx(0.3, abs=0.02)
    assert "the mean of 24 samples" in str(info)


def test_torch_counts_what_has_run():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "rmeeto", threshold=0.5, layers=LAYERS)
    with torch.no_grad(), FlopCounterMode(display=False) as mode:
        model(IMAGES[:1])
    assert mode.get_total_flops() == pytest.approx(2 * mtrkit.count_flops(model, directions="all").total, rel=0.01)


def test_copies_threads_and_switching_off():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "runs", threshold=0.5, layers=LAYERS)
    expected = [run(model, image[None]) for image in IMAGES[:6]]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(twin, IMAGES[:1]), expected[0])
        assert mtrkit.reduction_info(twin).measured == 7 and mtrkit.reduction_info(model).measured == 6
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda image: run(model, image[None]), IMAGES[:6]))
    assert all(map(torch.equal, found, expected)) and mtrkit.reduction_info(model).measured == 12
    with mtrkit.reduction_disabled(model):
        run(model, IMAGES[:1])
    assert mtrkit.reduction_info(model).measured == 12
    mtrkit.apply_reduction(model, "runs", ratio=0.3)
    info = mtrkit.reduction_info(model)
    assert info.thresholds is None and info.measured == 0 and "threshold" not in str(info)


def test_gradients_flow():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "runs", threshold=0.5, layers=LAYERS)
    model(IMAGES[:2]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_lost_stream_is_seen_at_any_length():
    model = FAMILIES["vim"]()
    threshold = mtrkit.find_thresholds(model, IMAGES, 0.1, method="tome", layers=[2])
    mtrkit.apply_reduction(model, "tome", threshold=threshold, layers=[2])
    model.layers[2].register_forward_hook(lambda module, given, output: (output[0], output[1].residual))
    with pytest.raises(StreamError, match="block 4 was given a Tensor"):
        run(model, IMAGES[:2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 0.9, "ratio": 0.3}, "ratio and threshold both say"),
        ({"threshold": 0.9, "r": 3}, "r and threshold both say"),
        ({"ratio": 0.3, "r": 3}, "ratio and r both say"),
        ({"ratio": 0.3, "tokens": [17] * 6}, "ratio and tokens both say"),
        ({"threshold": [0.9, 0.8], "layers": LAYERS}, r"one number for each of the layers \[2, 3, 4\]"),
        ({"threshold": float("nan")}, "one number for each of the layers"),
        ({"threshold": "high"}, "must be a number"),
        ({"threshold": 0.9, "sources": "random"}, "does not remove tokens by how similar"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    model = FAMILIES["vim"]()
    with pytest.raises(OptionError, match=message):
        mtrkit.apply_reduction(model, "rmeeto", **given)
    assert mtrkit.reduction_info(model) is None


@pytest.mark.parametrize("method", ["mtr", "hsa", "evit", "random"])
def test_methods_without_links_refuse(method):
    with pytest.raises(OptionError, match="threshold= says nothing"):
        mtrkit.apply_reduction(FAMILIES["vim"](), method, threshold=0.9)


@pytest.mark.filterwarnings("ignore")
def test_what_records_operators_is_refused():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "tome", threshold=0.5, layers=LAYERS)
    with pytest.raises(InputError, match="counts links by the data"):
        torch.jit.trace(model, IMAGES[:1])
    with pytest.raises(Exception, match="counts links by the data"):
        torch.export.export(model, (IMAGES[:1],), strict=False)
    with pytest.raises(InputError, match="counts links by the data"):
        torch.compile(model, backend="eager")(IMAGES[:1])
    with pytest.raises(Exception, match="counts links by the data"):
        torch.func.vmap(model)(IMAGES[:2, None])


def test_thresholds_reach_the_ratio_on_other_images_of_the_kind():
    model = FAMILIES["vim"]()
    found = mtrkit.find_thresholds(model, IMAGES[:20], 0.25, method="runs", layers=LAYERS, batch_size=4)
    assert len(found) == 3 and mtrkit.reduction_info(model) is None
    mtrkit.apply_reduction(model, "runs", threshold=found, layers=LAYERS)
    for batch in IMAGES.split(4):
        run(model, batch)
    assert mtrkit.reduction_info(model).ratio_reached == pytest.approx(0.25, abs=0.03)
    with pytest.raises(OptionError, match="ratio=0 removes nothing"):
        mtrkit.find_thresholds(model, IMAGES, 0)
    with pytest.raises(InputError, match="at least 20 images"):
        mtrkit.find_thresholds(model, IMAGES[:5])


def test_a_trace_keeps_passes_apart_of_which_some_reduce_nowhere():
    """Plain images lose tokens everywhere, noise nowhere: the latter's trace is not the former's."""
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "runs", threshold=0.9, layers=LAYERS)
    alike, noise = torch.full((2, 3, 32, 32), 100.0), 3 * IMAGES[:3]
    with torch.no_grad(), mtrkit.trace_reduction(model) as trace:
        model(alike)
        some = [stage.layer for stage in trace.latest]
        model(noise)
        assert some == LAYERS and not trace.latest
        assert torch.equal(trace.slot, torch.arange(trace.num_tokens).expand(3, -1))
        model(alike)
        assert [stage.layer for stage in trace.latest] == some and len(trace.stages) == 2 * len(some)
