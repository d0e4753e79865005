"""MTR on one image in plain loops, written from the paper's text; shares no code with mtrkit."""

import torch
import torch.nn.functional as F


def delta_of(mixer, normed):
    """Δ of one sample, (L, E): both directions after bias and softplus, aligned with the tokens, summed."""
    total = 0
    for suffix in ("", "_b"):
        x = mixer.in_proj(normed).T[: mixer.d_inner]  # (E, L)
        x = x.flip(-1) if suffix else x
        conv, dt_proj = getattr(mixer, f"conv1d{suffix}"), getattr(mixer, f"dt_proj{suffix}")
        padded = F.pad(x[None], (mixer.d_conv - 1, 0))
        u = F.silu(F.conv1d(padded, conv.weight, conv.bias, groups=mixer.d_inner))[0].T  # (L, E)
        dt = getattr(mixer, f"x_proj{suffix}")(u)[:, : mixer.dt_rank]
        delta = F.softplus(dt_proj(dt))
        total = total + (delta.flip(0) if suffix else delta)
    return total


def reduce_once(hidden, residual, score, classes, count):
    """One application: lists of rows, the positions of the class tokens, and tokens to remove."""
    patches = [i for i in range(len(hidden)) if i not in classes]
    ranked = sorted(patches, key=lambda i: (-score[i], i))
    targets, sources = ranked[count : len(ranked) - count], ranked[len(ranked) - count :]
    members = {i: [i] for i in range(len(hidden)) if i not in sources}
    for source in sources:
        similarity = {t: float(F.cosine_similarity(hidden[source], hidden[t], dim=0)) for t in targets}
        best = max(sorted(targets), key=similarity.get)
        members[best].append(source)
    order = sorted(members)
    new_hidden = [torch.stack([hidden[i] for i in members[p]]).mean(0) for p in order]
    new_residual = [torch.stack([residual[i] for i in members[p]]).mean(0) for p in order]
    return new_hidden, new_residual, [order.index(c) for c in classes]


def forward(model, image, layers, tokens):
    """Logits of one image (3, H, W) by a hustvl-form model with middle class token, reduced by MTR."""
    x = model.patch_embed(image[None])[0]
    place = len(x) // 2
    x = torch.cat([x[:place], model.cls_token[0], x[place:]]) + model.pos_embed[0]
    hidden, residual, classes = list(x), None, [place]
    for index, block in enumerate(model.layers):
        stream = None if residual is None else torch.stack(residual)[None]
        out, stream = block(torch.stack(hidden)[None], stream)
        hidden, residual = list(out[0]), list(stream[0])
        if index + 1 in layers:
            score = delta_of(block.mixer, block.norm(stream[0])).mean(-1).tolist()
            count = len(hidden) - tokens[index]
            hidden, residual, classes = reduce_once(hidden, residual, score, classes, count)
    final = model.norm_f(torch.stack(hidden) + torch.stack(residual))
    return model.head(final[classes[0]])
