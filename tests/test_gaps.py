"""HSA's state alignment: a scan over what is left decays as if the dropped tokens were there without input."""

import pytest
import torch
import torch.nn.functional as F

import mtrkit
from mtrkit.adapters import find_adapter
from mtrkit.errors import UnsupportedModelError
from mtrkit.ops import count_gaps, open_stream, original_positions, reduce_stream, remember_dropped, sum_gaps, token_map
from mtrkit.types import Gaps, MixerCall
from tests.helpers.families import FAMILIES
from tests.models.plain_vim import on_one_thread, silu
from tests.test_matrix import IMAGES, run

LEFT = [0, 1, 4, 5, 9, 10]  # of eleven tokens


def plain_direction(x, positions, length, w, suffix, removed_delta):
    """y (L', E) of one direction over all ``length`` positions, of which only ``positions`` have a token x."""
    taps, bias, width = w[f"conv1d{suffix}.weight"][:, 0], w[f"conv1d{suffix}.bias"], 4
    x_proj, dt_proj = w[f"x_proj{suffix}.weight"], w[f"dt_proj{suffix}.weight"]
    A, skip, dt_bias = -torch.exp(w[f"A{suffix}_log"]), w[f"D{suffix}"], w[f"dt_proj{suffix}.bias"]
    order = range(length) if not suffix else reversed(range(length))
    state, seen, y = torch.zeros_like(A), [], {}
    for position in order:
        if position not in positions:
            step = F.softplus(dt_bias) if removed_delta is None else removed_delta[position]
            state = torch.exp(step[:, None] * A) * state
            continue
        seen.append(x[positions.index(position)])
        total = bias + sum(taps[:, width - 1 - age] * v for age, v in enumerate(reversed(seen[-width:])))
        u = silu(total)
        dt, B, C = (x_proj @ u).split([dt_proj.shape[1], 16, 16])
        delta = F.softplus(dt_proj @ dt + dt_bias)
        state = torch.exp(delta[:, None] * A) * state + (delta * u)[:, None] * B
        y[position] = state @ C + skip * u
    return torch.stack([y[position] for position in positions])


@pytest.mark.parametrize("known", [False, True], ids=["bias", "last"])
@pytest.mark.parametrize("family", ["vim", "hustvl_vim", "videomamba"])
@on_one_thread
@torch.no_grad()
def test_the_scan_decays_over_gaps_like_a_loop_over_all_positions(family, known):
    model, tokens = FAMILIES[family](), torch.randn(1, len(LEFT), 32)
    adapter, mixer = find_adapter(model), model.layers[2].mixer
    delta = torch.rand(1, 11, 64)
    delta[:, LEFT] = 0
    stream = open_stream(torch.zeros(1, 11, 32))
    to = token_map(11, torch.tensor([LEFT]))
    passed = remember_dropped(stream, to.slot, 2 * delta)
    _, stream = reduce_stream(torch.zeros(1, 11, 32), stream, to)
    stream = stream._replace(dropped_delta=passed)
    ours, _ = adapter.run_mixer(mixer, tokens, MixerCall(gaps=sum_gaps(stream) if known else count_gaps(stream)))
    w = mixer.state_dict()
    x, z = (tokens[0] @ w["in_proj.weight"].T).chunk(2, dim=-1)
    steps = delta[0] if known else None
    y = sum(plain_direction(x, LEFT, 11, w, suffix, steps) for suffix in ("", "_b"))
    wanted = (y * silu(z) * (0.5 if family != "videomamba" else 1)) @ w["out_proj.weight"].T
    torch.testing.assert_close(ours[0], wanted, rtol=1e-4, atol=1e-5)
    carried, _ = adapter.run_mixer(mixer, tokens, MixerCall())
    assert not torch.allclose(ours, carried, atol=1e-3)


def test_gaps_are_counted_per_sample_and_over_stages():
    stream = open_stream(torch.zeros(2, 6, 1))
    hidden, stream = reduce_stream(
        torch.zeros(2, 6, 1), stream, token_map(6, torch.tensor([[0, 2, 3, 5], [1, 2, 3, 4]]))
    )
    _, stream = reduce_stream(hidden, stream, token_map(4, torch.tensor([[0, 2, 3], [0, 2, 3]])))
    assert original_positions(stream).tolist() == [[0, 3, 5], [1, 3, 4]]
    gaps = count_gaps(stream)
    assert gaps.forward.squeeze(-1).tolist() == [[0, 2, 1], [1, 1, 0]]
    assert gaps.backward.squeeze(-1).tolist() == [[2, 1, 0], [1, 0, 1]]


@torch.no_grad()
def test_no_gap_is_no_change():
    model, tokens = FAMILIES["vim"](), torch.randn(2, 9, 32)
    adapter, mixer = find_adapter(model), model.layers[0].mixer
    nothing = Gaps(torch.zeros(2, 9, 1), torch.zeros(2, 9, 1))
    torch.testing.assert_close(
        adapter.run_mixer(mixer, tokens, MixerCall(gaps=nothing))[0], mixer(tokens), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("removed_delta", ["bias", "last"])
@pytest.mark.parametrize("family", ["vim", "vim_mean", "hustvl_vim", "hustvl_vim_unfused", "videomamba", "mambar"])
def test_alignment_changes_later_blocks_and_nothing_else(family, removed_delta):
    model = FAMILIES[family]()
    dense = run(model)
    mtrkit.apply_reduction(model, "hsa", ratio=0.3)
    carried = run(model)
    mtrkit.apply_reduction(model, "hsa", ratio=0.3, state="decay", removed_delta=removed_delta)
    aligned = run(model)
    assert aligned.isfinite().all() and not torch.allclose(aligned, carried)
    torch.testing.assert_close(run(model, IMAGES[:1]), aligned[:1], rtol=1e-4, atol=1e-4)
    mtrkit.remove_reduction(model)
    assert torch.equal(run(model), dense)


def test_alignment_needs_a_scan():
    with pytest.raises(UnsupportedModelError, match="needs gap-aware scans"):
        mtrkit.apply_reduction(FAMILIES["timm_vit"](), "hsa", indicator="X", state="decay")


@pytest.mark.parametrize("removed_delta", ["bias", "last"])
def test_alignment_compiles_without_a_break(removed_delta):
    model = FAMILIES["vim"]()
    mtrkit.apply_reduction(model, "hsa", ratio=0.3, state="decay", removed_delta=removed_delta)
    expected = run(model)
    torch.testing.assert_close(
        run(torch.compile(model, fullgraph=True, backend="eager")), expected, rtol=1e-4, atol=1e-4
    )
