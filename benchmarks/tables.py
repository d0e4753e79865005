"""The tables of the papers as lists of methods, with the figures that they publish.

``benchmarks/laboratory.py`` runs them on the small reference models, where the shape of a table is asked for;
``benchmarks/imagenet.py`` runs those that have published figures on ImageNet and the official weights,
``benchmarks/kinetics.py`` that of clips on Kinetics-400.

Sources: MTR, arXiv:2507.14042; R-MeeTo, arXiv:2412.12496.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """Top-1 accuracies in per cent that a paper gives for one model.

    Attributes:
        dense: Of the model without reduction.
        reduced: Method → one per amount, ``None`` where the paper has no figure.
    """

    dense: float
    reduced: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Table:
    """One table of a paper.

    Attributes:
        name: File name of its results.
        title: What it shows.
        methods: As ``mtrkit compare --method`` takes them; differences are taken from the first.
        ratios: Shares of the FLOPs removed, on any model.
        removals: Tokens per layer removed, where the paper counts so; used on ImageNet instead of ``ratios``.
        published: Model → figures.
        tunes: Whether a default is chosen by it, so that images which are for tuning are asked first.
        calibrated: Whether ``runs`` calibrated stands beside the methods, on ImageNet.
    """

    name: str
    title: str
    methods: tuple[str, ...]
    ratios: tuple[float, ...] = (0.2, 0.3, 0.4)
    removals: tuple[int, ...] = ()
    published: Mapping[str, Published] = field(default_factory=dict)
    tunes: bool = False
    calibrated: bool = False


_VIM_T, _VIM_S, _VIM_B = (f"vim_{size}_patch16_224" for size in ("tiny", "small", "base"))
_VIDEOMAMBA_S, _VIDEOMAMBA_B = (f"videomamba_{size}_patch16_224" for size in ("small", "base"))

METHODS = Table(
    "methods",
    "Every method at the same share of the FLOPs (MTR, table 1, and more)",
    # Without tome: in a Mamba its bits are those of rmeeto.
    ("mtr", "evit", "pumer", "utr", "hsa", "rmeeto", "neighbor", "random", "random:operation=merge"),
    published={
        _VIM_S: Published(
            80.5,
            {
                "evit": (75.8, 71.8, 64.8),
                "pumer": (76.9, 74.6, 69.1),
                "utr": (77.3, 75.0, 71.5),
                "hsa": (76.7, 74.8, 71.2),
                "mtr": (78.8, 77.7, 75.4),
            },
        ),
        _VIM_B: Published(
            81.9,
            {
                "evit": (80.4, 78.9, 75.9),
                "pumer": (79.9, 78.9, 76.8),
                "utr": (80.4, 79.2, 78.0),
                "hsa": (80.1, 79.1, 77.7),
                "mtr": (81.2, 81.0, 80.3),
            },
        ),
        _VIDEOMAMBA_S: Published(
            81.2,
            {
                "evit": (78.2, 75.5, 70.2),
                "pumer": (78.4, 76.2, 71.1),
                "utr": (78.9, 77.1, 74.1),
                "hsa": (79.0, 77.2, 74.0),
                "mtr": (80.2, 79.0, 76.6),
            },
        ),
        _VIDEOMAMBA_B: Published(
            82.7,
            {
                "evit": (80.4, 77.7, 73.7),
                "pumer": (81.8, 80.5, 78.4),
                "utr": (82.0, 81.0, 79.4),
                "hsa": (82.0, 81.2, 79.6),
                "mtr": (82.4, 81.7, 80.5),
            },
        ),
    },
)


def _ablated(figures: Mapping[str, tuple[float, float]]) -> dict[str, Published]:
    """R-MeeTo's ablations without training: method → Vim-Ti at r = 5, and Vim-S at r = 11."""
    return {
        _VIM_T: Published(76.1, {method: (tiny, None) for method, (tiny, _) in figures.items()}),
        _VIM_S: Published(80.5, {method: (None, small) for method, (_, small) in figures.items()}),
    }


TIME = Table(
    "time",
    "Every method with and without keeping time",
    (
        "runs",
        *("neighbor", "neighbor:lengths=sizes"),
        *("rmeeto", "rmeeto:lengths=sizes", "rmeeto:lengths=positions"),
        *("mtr", "mtr:lengths=sizes", "mtr:lengths=positions"),
        *("pumer", "pumer:lengths=sizes", "utr", "utr:lengths=positions"),
        *("hsa", "hsa:lengths=positions", "evit", "evit:lengths=positions", "random", "random:lengths=positions"),
    ),
    calibrated=True,
    published={
        _VIM_T: Published(76.1, {}),
        _VIM_S: Published(80.5, {"mtr": (78.8, 77.7, 75.4)}),
        _VIM_B: Published(81.9, {"mtr": (81.2, 81.0, 80.3)}),
    },
)

_SHUFFLED = (0.1, 0.3, 0.5, 0.7)

TABLES = (
    METHODS,
    TIME,
    Table(
        "mtr_indicator",
        "What importance is read from (MTR, table 3)",
        ("mtr", "mtr:indicator=B", "mtr:indicator=C", "mtr:indicator=X", "mtr:indicator=cls"),
        published={
            _VIM_S: Published(
                80.5,
                {
                    "mtr": (78.8, 77.7, 75.4),
                    "mtr:indicator=B": (78.1, 77.1, 74.5),
                    "mtr:indicator=C": (78.1, 76.5, 73.3),
                    "mtr:indicator=X": (77.9, 76.1, 72.6),
                    "mtr:indicator=cls": (77.0, 74.4, 68.8),
                },
            ),
            _VIM_B: Published(
                81.9,
                {
                    "mtr": (81.2, 81.0, 80.3),
                    "mtr:indicator=B": (80.7, 80.1, 79.2),
                    "mtr:indicator=C": (80.7, 80.0, 78.8),
                    "mtr:indicator=X": (80.5, 80.3, 79.5),
                    "mtr:indicator=cls": (80.9, 79.8, 77.8),
                },
            ),
        },
    ),
    Table(
        "mtr_operation",
        "What happens to the source tokens (MTR, table 4)",
        ("mtr", "mtr:operation=hybrid", "mtr:operation=prune"),
        published={
            _VIM_S: Published(
                80.5,
                {
                    "mtr": (78.8, 77.7, 75.4),
                    "mtr:operation=hybrid": (78.6, 77.5, 74.6),
                    "mtr:operation=prune": (78.5, 77.1, 74.0),
                },
            ),
            _VIM_B: Published(
                81.9,
                {
                    "mtr": (81.2, 81.0, 80.3),
                    "mtr:operation=hybrid": (81.2, 80.9, 80.3),
                    "mtr:operation=prune": (81.1, 80.8, 80.1),
                },
            ),
        },
    ),
    Table(
        "mtr_open",
        "What MTR leaves open: the metric, its distance, how channels and several sources become one",
        (
            "mtr",
            "mtr:metric=features",
            "mtr:metric=delta",
            "mtr:metric=y",
            "mtr:similarity=l1",
            "mtr:similarity=l2",
            "mtr:channels=norm",
            "mtr:average=successive",
        ),
        ratios=(0.2, 0.4),
        tunes=True,
    ),
    Table(
        "mtr_layers",
        "After which of twelve blocks MTR reduces",
        ("mtr", "mtr:layers=2+4+6", "mtr:layers=4", "mtr:layers=4+8", "mtr:layers=6+8+10", "mtr:layers=even"),
        ratios=(0.2, 0.3),
        tunes=True,
    ),
    Table(
        "hsa_state",
        "Whether the state is carried over dropped tokens or decays (HSA), and by which step",
        ("hsa", "hsa:state=decay", "hsa:state=decay,removed_delta=last"),
        ratios=(0.2, 0.4),
        tunes=True,
    ),
    Table(
        "link_importance",
        "Links ranked by similarity minus a multiple of the source's importance",
        tuple(
            f"{method}:importance_weight={weight}" if weight else method
            for method in ("rmeeto", "neighbor")
            for weight in (0, 0.1, 0.3)
        ),
        ratios=(0.2, 0.4),
        tunes=True,
    ),
    Table(
        "rmeeto_operation",
        "Merging against pruning, even and odd blocks (R-MeeTo, figure of ratios)",
        (
            "rmeeto:layers=even",
            "rmeeto:layers=even,operation=prune",
            "rmeeto:layers=odd",
            "rmeeto:layers=odd,operation=prune",
        ),
        ratios=(0.14, 0.28, 0.42),
        removals=(5, 10, 15, 20),
        published={
            _VIM_S: Published(
                80.5,
                {
                    "rmeeto:layers=even": (78.5, 76.7, 72.9, 60.7),
                    "rmeeto:layers=even,operation=prune": (78.4, 76.4, 71.7, 53.4),
                    "rmeeto:layers=odd": (78.4, 76.3, 71.5, 54.6),
                    "rmeeto:layers=odd,operation=prune": (78.3, 76.1, 69.9, 44.9),
                },
            ),
        },
    ),
    Table(
        "rmeeto_order",
        "Survivors in sequence order or left as matching leaves them (R-MeeTo, table 4)",
        ("rmeeto:layers=even", "rmeeto:layers=even,order=leave"),
        ratios=(0.14, 0.28),
    ),
    Table(
        "rmeeto_shuffle",
        "A share of the patches shuffled before each reduction (R-MeeTo, table 5)",
        (
            "rmeeto:layers=even",
            *(f"rmeeto:layers=even,order=shuffle,shuffle_ratio={share}" for share in _SHUFFLED),
            *(f"rmeeto:layers=even,operation=prune,order=shuffle,shuffle_ratio={share}" for share in _SHUFFLED),
        ),
        ratios=(0.31,),
        removals=(11,),
        published={
            _VIM_S: Published(
                80.5,
                {
                    "rmeeto:layers=even": (76.3,),
                    **{
                        f"rmeeto:layers=even,{operation}order=shuffle,shuffle_ratio={share}": (top1,)
                        for operation, figures in (
                            ("", (61.3, 33.2, 27.3, 26.1)),
                            ("operation=prune,", (61.0, 33.0, 27.2, 25.6)),
                        )
                        for share, top1 in zip(_SHUFFLED, figures, strict=True)
                    },
                },
            ),
        },
    ),
    Table(
        "rmeeto_feature",
        "What similarity is measured on (R-MeeTo, table 6)",
        (
            "rmeeto:layers=even",
            "rmeeto:layers=even,metric=B",
            "rmeeto:layers=even,metric=C",
            "rmeeto:layers=even,metric=delta",
            "rmeeto:layers=even,metric=y",
            "rmeeto:layers=even,metric=features",
        ),
        ratios=(0.31,),
        removals=(5, 11),
        published=_ablated({"rmeeto:layers=even": (38.2, 76.3), "rmeeto:layers=even,metric=delta": (31.2, 76.2)}),
    ),
    Table(
        "rmeeto_distance",
        "How similarity is measured (R-MeeTo, table 7)",
        ("rmeeto:layers=even", "rmeeto:layers=even,similarity=l1", "rmeeto:layers=even,similarity=l2"),
        ratios=(0.31,),
        removals=(5, 11),
        published=_ablated(
            {
                "rmeeto:layers=even": (38.2, 76.3),
                "rmeeto:layers=even,similarity=l1": (38.1, 76.3),
                "rmeeto:layers=even,similarity=l2": (38.2, 76.3),
            }
        ),
    ),
    Table(
        "rmeeto_sweep",
        "Tokens removed at each of the even blocks (R-MeeTo, table 11)",
        ("rmeeto:layers=even",),
        ratios=(),
        removals=tuple(range(1, 12)),
        published={
            _VIM_T: Published(
                76.1, {"rmeeto:layers=even": (44.9, 52.3, 40.3, 44.5, 38.2, 41.7, 37.0, 40.0, 35.6, 38.4, 35.5)}
            ),
            _VIM_S: Published(
                80.5, {"rmeeto:layers=even": (77.4, 78.0, 78.7, 78.4, 78.5, 78.3, 78.1, 77.7, 77.5, 76.7, 76.3)}
            ),
        },
    ),
    Table(
        "rmeeto_merge",
        "How merged tokens become one (R-MeeTo, table 17)",
        tuple(f"rmeeto:layers=even,merge={merge}" for merge in ("sum", "mean", "max", "min")),
        ratios=(0.31,),
        removals=(5, 11),
        published=_ablated(
            {
                "rmeeto:layers=even,merge=sum": (38.2, 76.3),
                "rmeeto:layers=even,merge=mean": (41.8, 76.2),
                "rmeeto:layers=even,merge=max": (43.4, 74.7),
                "rmeeto:layers=even,merge=min": (39.7, 74.5),
            }
        ),
    ),
    Table(
        "rmeeto_grouping",
        "Which tokens may leave and which may receive (R-MeeTo, grouping)",
        tuple(f"rmeeto:layers=even,grouping={grouping}" for grouping in ("odd_even", "front_behind", "random")),
        ratios=(0.31,),
        removals=(5, 11),
        published=_ablated(
            {
                "rmeeto:layers=even,grouping=odd_even": (38.2, 76.3),
                "rmeeto:layers=even,grouping=front_behind": (29.0, 72.6),
                "rmeeto:layers=even,grouping=random": (42.1, 72.6),
            }
        ),
    ),
    Table(
        "rmeeto_kth",
        "The k-th most similar partner instead of the first (R-MeeTo, k-th closest)",
        tuple(f"rmeeto:layers=even,kth={k}" for k in (1, 3, 5, 7, 14)),
        ratios=(0.31,),
    ),
    Table(
        "rmeeto_controls",
        "Sources or partners by chance (R-MeeTo, random-r and random pair)",
        ("rmeeto:layers=even", "rmeeto:layers=even,sources=random", "rmeeto:layers=even,partner=random"),
        ratios=(0.14, 0.28, 0.42),
        removals=(5, 10, 11, 15, 20),
        published={
            _VIM_T: Published(
                76.1,
                {
                    "rmeeto:layers=even": (38.19, 38.41, 35.49, 30.83, 7.44),
                    "rmeeto:layers=even,sources=random": (37.08, 33.45, 30.74, 23.15, 5.10),
                    "rmeeto:layers=even,partner=random": (35.36, 31.12, 26.91, 14.49, 0.80),
                },
            ),
            _VIM_S: Published(
                80.5,
                {
                    "rmeeto:layers=even": (78.52, 76.73, 76.29, 72.86, 60.67),
                    "rmeeto:layers=even,sources=random": (77.96, 75.74, 75.23, 71.53, 56.32),
                    "rmeeto:layers=even,partner=random": (77.76, 74.06, 73.06, 65.22, 33.80),
                },
            ),
        },
    ),
    Table(
        "rmeeto_interval",
        "How many blocks lie between two reductions (R-MeeTo, interval)",
        tuple(f"rmeeto:layers=every{n}" for n in (2, 3, 4)),
        ratios=(0.31,),
    ),
)


@dataclass(frozen=True)
class Clips:
    """R-MeeTo's main table of Kinetics-400 for one model, at r = 88.

    Attributes:
        free: Top-1 in per cent without training.
        retrained: After re-training.
        gflops: Of one view, dense and reduced.
    """

    free: float
    retrained: float
    gflops: tuple[float, float]


_CLIPS = tuple(f"videomamba_{size}_patch16_224_f8" for size in ("tiny", "small", "middle"))
_EVEN = "rmeeto:layers=even"

KINETICS = Table(
    "kinetics",
    "Tokens removed at each of the even blocks, Kinetics-400 (R-MeeTo, r of VideoMamba)",
    (_EVEN,),
    ratios=(),
    removals=tuple(range(8, 89, 8)),
    published={
        _CLIPS[0]: Published(
            76.89, {_EVEN: (76.94, 76.95, 76.92, 76.95, 76.80, 76.61, 76.48, 76.23, 75.98, 75.81, 75.45)}
        ),
        _CLIPS[1]: Published(
            79.28, {_EVEN: (79.23, 79.16, 79.13, 79.10, 78.97, 78.90, 78.68, 78.43, 78.02, 77.86, 77.41)}
        ),
        _CLIPS[2]: Published(
            80.47, {_EVEN: (79.78, 79.68, 79.74, 79.70, 79.51, 79.39, 79.31, 79.12, 78.90, 78.75, 78.44)}
        ),
    },
)

KINETICS_MAIN = {
    _CLIPS[0]: Clips(75.4, 76.5, (11.54, 9.49)),
    _CLIPS[1]: Clips(77.5, 78.5, (40.43, 30.99)),
    _CLIPS[2]: Clips(78.4, 78.9, (115.33, 71.71)),
}
