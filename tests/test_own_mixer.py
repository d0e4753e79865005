"""A Mamba-2 mixer from outside, as CONTRIBUTING describes it: heads with one decay each, in a stack of its own.

Everything that mtrkit needs is in this file: the mixer run by single operators with its signals, the sizes that decide
its cost, and the adapter. Ratio, methods, tracing and removal come with it.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mtrkit
from mtrkit.adapters import ADAPTERS, Adapter
from mtrkit.scan import causal_conv1d, selective_scan
from mtrkit.schedule import ModelShape, Widths
from mtrkit.types import MixerCall, Signals

WIDTH, INNER, HEADS, STATE, DEPTH, TOKENS = 24, 48, 4, 8, 6, 40


class Mamba2(nn.Module):
    """Projections to z, x, B, C and Δ at once; Δ and A per head."""

    def __init__(self):
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 2 * INNER + 2 * STATE + HEADS, bias=False)
        self.conv = nn.Conv1d(INNER + 2 * STATE, INNER + 2 * STATE, 4, groups=INNER + 2 * STATE, padding=3)
        self.dt_bias = nn.Parameter(torch.randn(HEADS) - 1)
        self.A_log, self.D = nn.Parameter(torch.rand(HEADS)), nn.Parameter(torch.ones(HEADS))
        self.out_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, hidden, call=None):
        """Token by token, by its own loop, which knows nothing of mtrkit."""
        z, xBC, dt = self.in_proj(hidden).split([INNER, INNER + 2 * STATE, HEADS], dim=-1)
        xBC = F.silu(self.conv(xBC.transpose(1, 2))[..., : hidden.shape[1]]).transpose(1, 2)
        x, B, C = xBC.split([INNER, STATE, STATE], dim=-1)
        step, state, outputs = F.softplus(dt + self.dt_bias), 0, []
        x = x.unflatten(-1, (HEADS, -1))
        for t in range(hidden.shape[1]):
            decay = torch.exp(-step[:, t] * self.A_log.exp())[..., None, None]
            state = decay * state + (step[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
            outputs.append((state * C[:, t, None, None]).sum(-1) + self.D[:, None] * x[:, t])
        return self.out_proj(torch.stack(outputs, 1).flatten(2) * F.silu(z))


class Block(nn.Module):
    """Add, norm, mixer."""

    def __init__(self):
        super().__init__()
        self.norm, self.mamba2 = nn.LayerNorm(WIDTH), Mamba2()

    def forward(self, hidden, residual=None, call=None):
        """Return the mixer's output and the running sum without it."""
        residual = hidden if residual is None else residual + hidden
        return self.mamba2(self.norm(residual), call), residual


class Stack(nn.Module):
    """Tokens in, the mean of the answers out."""

    def __init__(self):
        super().__init__()
        self.mamba2_blocks, self.head = nn.ModuleList(Block() for _ in range(DEPTH)), nn.Linear(WIDTH, 5)

    def forward(self, tokens):
        """(B, L, D) to (B, 5)."""
        hidden, residual = tokens, None
        for block in self.mamba2_blocks:
            hidden, residual = block(hidden, residual)
        return self.head((hidden + residual).mean(1))


@dataclass(frozen=True, kw_only=True)
class Mamba2Shape(ModelShape):
    """What a block costs, and how wide its signals are."""

    @property
    def widths(self):
        """Δ has a channel per head."""
        return Widths(self.dim, HEADS, STATE)

    def block_flops(self, num_tokens, directions="one"):
        """Projections, convolution and scan."""
        return num_tokens * (WIDTH * (3 * INNER + 2 * STATE + HEADS) + 4 * (INNER + 2 * STATE) + INNER * 9 * STATE)


def nowhere(num_tokens):
    """No special token."""
    return ()


class Mamba2Adapter(Adapter):
    """Knows the stack by its list's name."""

    name, summary = "toy_mamba2", "a stack of Mamba-2 mixers"
    directions, call_argument = 1, "call"
    signals = frozenset({"delta", "delta_mean", "ssm_B", "ssm_C", "y"})

    def mismatch(self, model):
        return None if hasattr(model, "mamba2_blocks") else "has no `mamba2_blocks`"

    def blocks(self, model):
        return list(model.mamba2_blocks)

    def mixer(self, block):
        return block.mamba2

    def run_mixer(self, mixer, hidden, call):
        """By mtrkit's convolution and scan, a head's step and decay for each of its channels."""
        z, xBC, dt = mixer.in_proj(hidden).split([INNER, INNER + 2 * STATE, HEADS], dim=-1)
        xBC = causal_conv1d(xBC.transpose(1, 2), mixer.conv.weight, mixer.conv.bias)
        x, B, C = xBC.split([INNER, STATE, STATE], dim=1)
        step, each = F.softplus(dt + mixer.dt_bias), INNER // HEADS
        A = -mixer.A_log.exp().repeat_interleave(each)[:, None].expand(-1, STATE)
        delta = step.repeat_interleave(each, dim=-1).transpose(1, 2)
        y = selective_scan(x, delta, A, B, C, mixer.D.repeat_interleave(each)).transpose(1, 2)
        seen = {"delta": step, "delta_mean": step.mean(-1), "ssm_B": B.mT, "ssm_C": C.mT, "y": y}
        return mixer.out_proj(y * F.silu(z)), Signals(**{name: seen[name] for name in call.reads})

    def special_at(self, model):
        return nowhere

    def input_size(self, model):
        return (TOKENS,)

    def shape(self, model, input_size):
        sizes = {"tokens": input_size[0], "patches": input_size[0], "special": 0, "patch_macs": 0}
        return Mamba2Shape(depth=DEPTH, dim=WIDTH, head_macs=5 * WIDTH, **sizes)


@pytest.fixture
def model():
    ADAPTERS.add(Mamba2Adapter.name, Mamba2Adapter())
    yield Stack().eval()
    ADAPTERS.remove(Mamba2Adapter.name)


@torch.no_grad()
def test_the_mixer_by_operators_equals_its_own_loop(model):
    hidden, mixer = torch.randn(2, TOKENS, WIDTH), model.mamba2_blocks[0].mamba2
    out, signals = Mamba2Adapter().run_mixer(mixer, hidden, MixerCall(frozenset({"y", "delta"})))
    torch.testing.assert_close(out, mixer(hidden), rtol=1e-4, atol=1e-5)
    assert signals.delta.shape == (2, TOKENS, HEADS) and signals.y.shape == (2, TOKENS, INNER)


@pytest.mark.parametrize("method", sorted(set(mtrkit.list_methods()) - {"runs"}))  # the toy keeps no time
@torch.no_grad()
def test_every_method_reduces_and_leaves(model, method):
    tokens = torch.randn(2, TOKENS, WIDTH)
    dense = model(tokens)
    mtrkit.apply_reduction(model, method, ratio=0.2)
    info = mtrkit.reduction_info(model)
    assert abs(info.ratio_reached - 0.2) < 0.02 and info.adapter == "toy_mamba2"
    reduced = model(tokens)
    assert reduced.shape == dense.shape and not torch.allclose(reduced, dense)
    assert torch.equal(mtrkit.remove_reduction(model)(tokens), dense)
