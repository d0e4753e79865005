"""A ViT with ToMe inside, on one picture, in plain loops over float64 rows; shares no code with mtrkit or timm.

Written from the paper (Bolya et al., arXiv:2210.09461) and, where it is silent, from a description of the released
code: which tokens are sources, in which order the survivors stand, that special tokens are protected.
"""

import math

import numpy as np


def weights_of(model):
    """Every parameter by its name, float64."""
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def normalised(x, w, name):
    """LayerNorm over the last axis, with the weights ``name``; as it is if there are none."""
    if f"{name}.weight" not in w:
        return x
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    """A linear layer."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def scaled(x, w, name):
    """LayerScale, if there is one."""
    return x * w.get(f"{name}.gamma", 1.0)


def gelu(x):
    """x·Φ(x)."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(x, sizes, w, name, heads):
    """The output of softmax(q·kᵀ / √d + log s)·v in every head, projected, and the mean key."""
    q, k, v = (part.reshape(len(x), heads, -1) for part in np.split(linear(x, w, f"{name}.qkv"), 3, axis=-1))
    q, k = normalised(q, w, f"{name}.q_norm"), normalised(k, w, f"{name}.k_norm")
    out = np.zeros_like(v)
    for head in range(heads):
        for query in range(len(x)):
            logits = [q[query, head] @ k[t, head] / math.sqrt(k.shape[-1]) + math.log(sizes[t]) for t in range(len(x))]
            share = [math.exp(value - max(logits)) for value in logits]
            out[query, head] = sum(s * v[t, head] for t, s in enumerate(share)) / sum(share)
    return linear(out.reshape(len(x), -1), w, f"{name}.proj"), k.mean(1)


def merged(x, sizes, metric, r, special, order="leave", counted=True):
    """Rows and sizes after the r most similar pairs have merged; the first ``special`` rows take no part.

    Args:
        x: (L, D) rows.
        sizes: How many patches each stands for.
        metric: (L, M) rows to compare.
        r: Pairs.
        special: Class, distillation and register tokens in front.
        order: As matching leaves them, or in sequence order.
        counted: Whether every second one is a source of all tokens, or of the patches.
    """
    sources = [t for t in range(special, len(x)) if (t if counted else t - special) % 2 == 0]
    targets = [t for t in range(special, len(x)) if t not in sources]
    unit = [row / math.sqrt(row @ row) for row in metric]
    best = {s: max(targets, key=lambda t: unit[s] @ unit[t]) for s in sources}  # noqa: B023 used at once
    ranked = sorted(sources, key=lambda s: -(unit[s] @ unit[best[s]]))
    into, rest = {s: best[s] for s in ranked[:r]}, ranked[r:]
    rest = sorted(rest) if special and counted else rest  # so the class token stays in front
    kept = [*range(special), *rest, *targets]
    kept = kept if order == "leave" else sorted(kept)
    groups = [[t, *(s for s in into if into[s] == t)] for t in kept]
    rows = [sum(sizes[t] * x[t] for t in group) / sum(sizes[t] for t in group) for group in groups]
    return np.stack(rows), [sum(sizes[t] for t in group) for group in groups]


def embedded(picture, w, patch, prefixes):
    """Prefix tokens and patches of a picture (3, H, W), positions added to as many as have one."""
    rows = []
    for top in range(0, picture.shape[1], patch):
        for left in range(0, picture.shape[2], patch):
            pixels = picture[:, top : top + patch, left : left + patch]
            rows.append((w["patch_embed.proj.weight"] * pixels).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
    front = [row for name in prefixes for row in w[name][0]]
    return np.stack([*front, *rows]) + w["pos_embed"][0]


def forward(picture, w, counts, *, heads, patch, prefixes, place="before_mlp", weighs=True, metric="keys", **options):
    """Logits of one picture, the tokens' sizes at the end, with ``counts[i]`` tokens merged in block i.

    Args:
        picture: (3, H, W).
        w: From :func:`weights_of`.
        counts: One per block.
        heads: Attention heads.
        patch: Pixels on a side.
        prefixes: Names of the tokens in front of the patches.
        place: Before the MLP, or behind it.
        weighs: Whether attention is proportional.
        metric: Keys, or the tokens themselves.
        **options: Of :func:`merged`.
    """
    x = embedded(picture, w, patch, prefixes)
    special, sizes = sum(w[name].shape[1] for name in prefixes), [1] * len(x)
    for number, count in enumerate(counts):
        name = f"blocks.{number}"
        seen = sizes if weighs else [1] * len(x)
        out, keys = attention(normalised(x, w, f"{name}.norm1"), seen, w, f"{name}.attn", heads)
        x = x + scaled(out, w, f"{name}.ls1")
        if place == "before_mlp" and count:
            x, sizes = merged(x, sizes, keys if metric == "keys" else x, count, special, **options)
        inner = gelu(linear(normalised(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1"))
        x = x + scaled(linear(inner, w, f"{name}.mlp.fc2"), w, f"{name}.ls2")
        if place == "after_block" and count:
            x, sizes = merged(x, sizes, keys if metric == "keys" else x, count, special, **options)
    return answer(normalised(x, w, "norm"), sizes, w, special, prefixes), sizes


def answer(x, sizes, w, special, prefixes):
    """From the class token; without one from the mean over the patches, each of which its token stands for."""
    if "dist_token" in prefixes:
        return (linear(x[0], w, "head") + linear(x[1], w, "head_dist")) / 2
    if "cls_token" in prefixes:
        return linear(x[0], w, "head")
    patches = range(special, len(x))
    mean = sum(sizes[t] * x[t] for t in patches) / sum(sizes[t] for t in patches)
    return linear(normalised(mean, w, "fc_norm"), w, "head")
