"""Draw why merged tokens must last: what taps of the convolution see, and how a state decays. Writes docs/clock.svg.

python benchmarks/draw_clock.py        # in the repository's root
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

LENGTHS = (1, 2, 1, 2, 3, 1, 2)  # positions that each token of the shortened sequence stands for
DECAY = 0.75  # exp(ΔA) of one position
TAPS = 4
DENSE, ONCE, RUNS = "0.35", "tab:red", "tab:blue"


def starts() -> list[int]:
    """The first position of each token."""
    return [sum(LENGTHS[:index]) for index in range(len(LENGTHS))]


def draw_taps(axes: Axes, row: float, merged: bool, seen: list[int], colour: str, text: str) -> None:
    """One row of tokens over their positions, with the positions that the last one's taps see marked."""
    tokens = zip(starts(), LENGTHS, strict=True) if merged else ((position, 1) for position in range(sum(LENGTHS)))
    for start, length in tokens:
        axes.broken_barh([(start + 0.05, length - 0.1)], (row, 0.5), facecolor="0.9", edgecolor="0.6")
    for position in seen:
        axes.plot(position + 0.5, row + 0.25, "o", color=colour)
    axes.text(-0.3, row + 0.25, text, ha="right", va="center")


def taps(axes: Axes) -> None:
    """What the convolution at the last position sees."""
    last, end = starts(), sum(LENGTHS) - 1
    draw_taps(axes, 2, False, list(range(end - TAPS + 1, end + 1)), DENSE, "dense")
    draw_taps(axes, 1, True, last[-TAPS:], ONCE, "one position each")
    draw_taps(axes, 0, True, list(range(end - TAPS + 1, end + 1)), RUNS, "runs")
    axes.set(
        title="What the four taps at the end see", xlabel="position", yticks=[], xlim=(0, end + 1), ylim=(-0.2, 2.7)
    )


def decays(axes: Axes) -> None:
    """How much of the first token's state is left."""
    positions = range(sum(LENGTHS) + 1)
    axes.plot(positions, [DECAY**p for p in positions], color=DENSE, lw=5, alpha=0.4, label="dense")
    ends = [*starts()[1:], sum(LENGTHS)]
    axes.step([0, *ends], [DECAY**t for t in range(len(ends) + 1)], color=ONCE, where="post", label="one position each")
    axes.plot([0, *ends], [DECAY**end for end in [0, *ends]], "o", color=RUNS, label="runs")
    axes.set(title="What is left of the first state", xlabel="position", ylim=(0, 1.05))
    axes.legend(frameon=False)


def main() -> None:
    """Both, side by side."""
    mpl.rcParams |= {
        "svg.hashsalt": "mtrkit",
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
    taps(left)
    decays(right)
    figure.savefig(Path("docs/clock.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
