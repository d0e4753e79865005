"""The published methods on one image, in plain loops over rows; shares no code with mtrkit.

Each takes an :class:`Image` and the number of tokens to remove, and returns the image afterwards. They are written
from the papers and from descriptions of the released codes, quirks that mtrkit offers as flags included.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Image:
    """One image's tokens between two blocks, as rows in the order in which the next block sees them."""

    hidden: np.ndarray  # (L, D)
    residual: np.ndarray  # (L, D)
    size: list[int]
    classes: list[int]  # where the class tokens stand, in the order of the original sequence
    origin: list[list[int]]  # original positions behind each token
    signals: dict[str, np.ndarray]  # further rows per token, of this block

    def rows(self, name):
        """The rows of a signal."""
        own = {"X": self.hidden, "features": self.hidden + self.residual}
        return own[name] if name in own else self.signals[name]

    @property
    def patches(self):
        """Positions that are no class token's."""
        return [i for i in range(len(self.size)) if i not in self.classes]


@dataclass
class Fate:
    """What becomes of the tokens: who stays in which order, and who goes where."""

    order: list[int]
    into: dict[int, int]  # source → target, of those that are merged


def cosine(a, b):
    """Cosine of the angle between two rows; 0 if one is zero."""
    norms = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / norms if norms else 0.0


def unit(a):
    """The row at length one."""
    return a / math.sqrt(float(a @ a))


def alike(a, b, distance):
    """Similarity as R-MeeTo measures it: on unit vectors."""
    if distance == "cosine":
        return cosine(a, b)
    gap = unit(a) - unit(b)
    return -float(abs(gap).sum()) if distance == "l1" else -float(gap @ gap)


def after(image, fate, combine, into_hidden=None):
    """Carry out a fate; ``combine(rows, sizes)`` makes one row of those that meet."""
    into_hidden = fate.into if into_hidden is None else into_hidden

    def gathered(rows, into):
        groups = [[token, *(s for s in sorted(into) if into[s] == token)] for token in fate.order]
        return np.stack([combine([rows[i] for i in g], [image.size[i] for i in g]) for g in groups])

    groups = [[token, *(s for s in fate.into if fate.into[s] == token)] for token in fate.order]
    return Image(
        gathered(image.hidden, into_hidden),
        gathered(image.residual, fate.into),
        [sum(image.size[i] for i in group) for group in groups],
        [fate.order.index(c) for c in image.classes],
        [sorted(p for i in group for p in image.origin[i]) for group in groups],
        {},
    )


def by_size(rows, sizes):
    """Mean of all the patches behind the rows."""
    return sum(r * s for r, s in zip(rows, sizes, strict=True)) / sum(sizes)


def plain_mean(rows, sizes):
    """Mean of the rows."""
    del sizes
    return sum(rows) / len(rows)


def halving(rows, sizes):
    """Each row in turn averaged with what is there."""
    del sizes
    value = rows[0]
    for row in rows[1:]:
        value = (value + row) / 2
    return value


def greatest(rows, sizes):
    """Channel by channel."""
    del sizes
    return np.maximum.reduce(rows)


def least(rows, sizes):
    """Channel by channel."""
    del sizes
    return np.minimum.reduce(rows)


def links(rows, a, b, measure, kth=1):
    """(similarity, source, target) of each source in ``a``, the strongest first; ties to the earlier."""
    found = []
    for source in a:
        values = {target: measure(rows[source], rows[target]) for target in b}
        target = sorted(b, key=lambda t: -values[t])[kth - 1]  # noqa: B023 used at once
        found.append((values[target], source, target))
    return sorted(found, key=lambda link: -link[0])


def insert_classes(image, patches, places):
    """Put the class tokens among the patches, the first one first."""
    order = list(patches)
    for c, place in zip(image.classes, places, strict=True):
        order.insert(place, c)
    return order


def exact_places(image, patches):
    """Behind as many patches, and class tokens, as stood in front of it and have survived."""
    return [sum(p < c for p in patches) + number for number, c in enumerate(image.classes)]


def merge_best(image, count, ranked, a, b, order="restore"):
    """The fate in which the sources of the best links merge."""
    chosen, others = ranked[:count], ranked[count:]
    into = {source: target for _, source, target in chosen}
    stay = [source for _, source, _ in others]
    patches = [*stay, *b] if order == "leave" else sorted([*stay, *b])
    return Fate(insert_classes(image, patches, exact_places(image, patches)), into)


MERGES = {"sum": by_size, "mean": plain_mean, "max": greatest, "min": least}


def rmeeto(
    image,
    count,
    metric="X",
    similarity="cosine",
    kth=1,
    grouping="odd_even",
    operation="merge",
    merge="sum",
    order="restore",
    class_position="exact",
):
    """R-MeeTo's merge module, one image at a time."""
    length, patches = len(image.size), image.patches
    half = (len(patches) + 1) // 2
    a, b = (patches[0::2], patches[1::2]) if grouping == "odd_even" else (patches[:half], patches[half:])
    ranked = links(image.rows(metric), a, b, lambda x, y: alike(x, y, similarity), kth)
    fate = merge_best(image, count, ranked, a, b, order)
    if class_position == "floor":
        (position,) = image.classes
        place = position * (length - count) // length
        if order == "leave":
            place = position * (len(a) - count) // len(a)
        kept = [token for token in fate.order if token != position]
        fate.order = insert_classes(image, kept, [place])
    if operation == "prune":
        fate.into = {}
    return after(image, fate, MERGES[merge])


def tome(image, count, metric="X", order="restore"):
    """ToMe's bipartite matching on the patches."""
    a, b = image.patches[0::2], image.patches[1::2]
    ranked = links(image.rows(metric), a, b, cosine)
    return after(image, merge_best(image, count, ranked, a, b, order), by_size)


def pumer(image, count, order="restore", clipped=True):
    """The port in UTR's comparison: matching on the clipped mixer output, plain means."""
    a, b = image.patches[0::2], image.patches[1::2]
    metric = image.hidden.clip(min=0) if clipped else image.hidden
    return after(image, merge_best(image, count, links(metric, a, b, cosine), a, b, order), plain_mean)


def clipped_mean(rows):
    """Σ max(0, y) / E of each row."""
    return [sum(max(0.0, float(value)) for value in row) / len(row) for row in rows]


def utr(
    image,
    count,
    hidden="hybrid",
    residual="merge",
    pruned_share=0.5,
    pruned="least_similar",
    average="group",
    indicator="y",
):
    """UTR's text: the less important half links to the other; some links are merged and some dropped."""
    score = clipped_mean(image.rows(indicator))
    ranked = sorted(image.patches, key=lambda i: -score[i])
    half = len(ranked) // 2
    more, less = sorted(ranked[: len(ranked) - half]), sorted(ranked[len(ranked) - half :])
    chosen = links(image.hidden, less, more, cosine)[:count]

    def merged(action):
        gone = {"merge": 0, "prune": count, "hybrid": math.floor(pruned_share * count)}[action]
        stay = chosen[: count - gone] if pruned == "least_similar" else chosen[gone:]
        return {source: target for _, source, target in stay}

    leaving = {source for _, source, _ in chosen}
    order = [i for i in range(len(image.size)) if i not in leaving]
    combine = plain_mean if average == "group" else halving
    return after(image, Fate(order, merged(residual)), combine, merged(hidden))


def hsa(image, count, class_position="exact", indicator="y"):
    """HSA's text: drop the patches with the least Σ max(0, y); the class token exact, or in the middle."""
    score = clipped_mean(image.rows(indicator))
    ranked = sorted(image.patches, key=lambda i: -score[i])
    kept = sorted(ranked[: len(ranked) - count])
    places = exact_places(image, kept) if class_position == "exact" else [len(kept) // 2]
    return after(image, Fate(insert_classes(image, kept, places), {}), plain_mean)


def evit(image, count, metric="features", fuse=False, order="restore"):
    """Keep what is most similar to the class token, and perhaps one mean of the rest."""
    rows = image.rows(metric)
    score = [sum(cosine(row, rows[c]) for c in image.classes) / len(image.classes) for row in rows]
    ranked = sorted(image.patches, key=lambda i: -score[i])
    kept, dropped = ranked[: len(ranked) - count], ranked[len(ranked) - count :]
    patches = kept if order == "leave" else sorted(kept)
    places = exact_places(image, patches)
    fate = Fate(insert_classes(image, patches, places), dict.fromkeys(dropped, kept[-1]) if fuse else {})
    weights = [max(value, 1e-6) for value in score]
    sizes = image.size
    image.size = weights  # the mean is weighted by these instead
    result = after(image, fate, by_size)
    result.size = [sum(sizes[i] for i in [t, *(s for s in fate.into if fate.into[s] == t)]) for t in fate.order]
    return result


def neighbor(image, count, across_special=False, protect_class_neighbors=False, metric="X"):
    """Every second patch and the more similar of the two beside it; those that may not merge come last."""
    patches, found, rows = image.patches, [], image.rows(metric)
    beside = {c + step for c in image.classes for step in (-1, 1)}
    for place in range(0, len(patches), 2):
        options = []
        for other in (place - 1, place + 1):
            if 0 <= other < len(patches):
                source, target = patches[place], patches[other]
                apart = not across_special and abs(source - target) > 1
                apart = apart or (protect_class_neighbors and bool({source, target} & beside))
                value = -math.inf if apart else cosine(rows[source], rows[target])
                options.append((value, source, target))
        found.append(max(options, key=lambda option: option[0]))
    chosen = sorted(found, key=lambda link: -link[0])[:count]
    into = {source: target for _, source, target in chosen}
    return after(image, Fate([i for i in range(len(image.size)) if i not in into], into), by_size)


def runs(image, count, **options):
    """Neighbours by their features; how long they last is for the blocks to come."""
    return neighbor(image, count, **{"metric": "features", **options})
