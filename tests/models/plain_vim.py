"""Vim as a function of a state dict, token by token: what the models in mtrkit are compared with.

Written from the definition of the mixer and of the block, in float64 and without any module, so that it has
nothing in common with mtrkit but the names of the weights.
"""

import functools

import torch


def on_one_thread(function):
    """Run without torch's threads, which would wait for each other after every one of many small steps."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return run


def silu(x):
    """x · σ(x)."""
    return x / (1 + torch.exp(-x))


def rms_norm(x, weight):
    """Divide by the root of the mean square of the last axis."""
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def direction(x, order, w, suffix):
    """Convolution and recurrence over tokens visited in ``order``: x (B, L, E) to y (B, L, E), ungated."""
    taps, bias = w[f"conv1d{suffix}.weight"][:, 0], w[f"conv1d{suffix}.bias"]
    x_proj, dt_proj = w[f"x_proj{suffix}.weight"], w[f"dt_proj{suffix}.weight"]
    A, skip = -torch.exp(w[f"A{suffix}_log"]), w[f"D{suffix}"]
    rank, width = dt_proj.shape[1], taps.shape[1]
    state = torch.zeros(x.shape[0], *A.shape, dtype=x.dtype)
    y, seen = torch.empty_like(x), []
    for t in order:
        seen.append(x[:, t])
        total = bias.expand_as(x[:, t])
        for age, value in enumerate(reversed(seen[-width:])):
            total = total + taps[:, width - 1 - age] * value
        u = silu(total)
        projected = u @ x_proj.T
        dt, B, C = (
            projected[:, :rank],
            projected[:, rank : rank + A.shape[1]],
            projected[:, rank + A.shape[1] :],
        )
        delta = torch.log1p(torch.exp(dt @ dt_proj.T + w[f"dt_proj{suffix}.bias"]))
        state = torch.exp(delta[:, :, None] * A) * state + (delta * u)[:, :, None] * B[:, None, :]
        y[:, t] = (state * C[:, None, :]).sum(-1) + skip * u
    return y


def mixer(x, w, divisor=2):
    """Both directions on normalised tokens (B, L, D); Vim halves their sum, VideoMamba divides it by 1."""
    length = x.shape[1]
    x, z = (x @ w["in_proj.weight"].T).chunk(2, dim=-1)
    y = direction(x, range(length), w, "") + direction(x, reversed(range(length)), w, "_b")
    return (y * silu(z) / divisor) @ w["out_proj.weight"].T


@on_one_thread
@torch.no_grad()
def plain_vim(state, images, patch, stride=None):
    """Logits (B, classes) of a Vim with a class token in the middle.

    Args:
        state: State dict in the official layout.
        images: (B, C, H, W).
        patch: Side of a patch.
        stride: Step between patches. Default: ``patch``.
    """
    w = {name: value.double() for name, value in state.items()}
    images, stride = images.double(), stride or patch
    kernel = w["patch_embed.proj.weight"].flatten(1)
    tokens = [
        images[:, :, i : i + patch, j : j + patch].flatten(1) @ kernel.T + w["patch_embed.proj.bias"]
        for i in range(0, images.shape[2] - patch + 1, stride)
        for j in range(0, images.shape[3] - patch + 1, stride)
    ]
    middle = len(tokens) // 2
    tokens.insert(middle, w["cls_token"][0].expand(images.shape[0], -1))
    stream = torch.stack(tokens, dim=1) + w["pos_embed"]
    for i in range(sum(name.endswith(".norm.weight") for name in w)):
        inner = {k.removeprefix(f"layers.{i}.mixer."): v for k, v in w.items() if k.startswith(f"layers.{i}.mixer.")}
        stream = stream + mixer(rms_norm(stream, w[f"layers.{i}.norm.weight"]), inner)
    return rms_norm(stream, w["norm_f.weight"])[:, middle] @ w["head.weight"].T + w["head.bias"]
