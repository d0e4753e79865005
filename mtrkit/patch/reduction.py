"""What one call of ``apply_reduction`` decided, whether the model still fits it, and where it is found."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, SpecialAt
from mtrkit.dynamo import constant_result
from mtrkit.errors import UnsupportedModelError
from mtrkit.methods.base import Method, MethodConfig
from mtrkit.ops import know_reduction
from mtrkit.patch.journal import Journal
from mtrkit.patch.measured import Measured
from mtrkit.patch.patched import Patched
from mtrkit.patch.plan import Plan
from mtrkit.schedule import MambaShape, ModelShape
from mtrkit.types import BlockState, Correction, Decision, ReducedStream

RECORD = "_mtrkit_reduction"  # the attribute of a patched model that holds its reduction

Observer = Callable[[int, BlockState, Decision, ReducedStream], None]
"""Sees the decision behind a block, counted from 0, what it was made of, and the stream before it."""

Watcher = Callable[[int, Tensor], None]
"""Sees the strengths (B, s) of all links behind a block, counted from 1, of a reduction with thresholds."""

Recorder = Callable[[Tensor, ReducedStream], None]
"""Sees the stream of a two-tensor family after the last block, before anything is put back."""


@dataclass
class Reduction:
    """Everything one call of ``apply_reduction`` decided; shared by the patched blocks of a model."""

    method: Method
    config: MethodConfig
    adapter: Adapter
    input_size: tuple[int, ...]
    special_at: SpecialAt
    plan: Plan
    host: nn.Module = field(repr=False)
    correction: Correction | None = None  # of the features after the last block
    trained: nn.Module | None = field(default=None, repr=False)  # what a trained method has beside the model
    disabled: int = 0  # by how many who are not done
    removed: bool = False  # what others still hold of the patch then runs as if there were none
    observers: list[Observer] = field(default_factory=list)
    recorders: list[Recorder] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    measured: Measured = field(init=False, repr=False)  # for thresholds
    journal: Journal = field(default_factory=Journal, repr=False)
    chain_key: str | None = field(init=False, repr=False)  # of method and options; None: they fit no chain
    blocks: tuple[nn.Module, ...] = field(init=False, repr=False)  # as they were when the patch was made
    _seen: tuple[nn.Module, ...] = field(init=False, repr=False)  # what was last found in their place, and is in order

    def __post_init__(self) -> None:
        self.measured, self.chain_key = Measured(self.plan.layers), self._know()
        self.blocks = self._seen = tuple(self.adapter.blocks(self.host))
        first = {id(block): index for index, block in reversed([*enumerate(self.blocks)])}
        twice = next((i for i, block in enumerate(self.blocks) if first[id(block)] != i), None)
        if twice is not None:
            raise UnsupportedModelError(
                f"blocks {first[id(self.blocks[twice])] + 1} and {twice + 1} of {type(self.host).__name__} are one "
                "module, which cannot reduce in one place and not in the other; give each place a block of its own "
                "(copy.deepcopy), whose parameters may be shared"
            )

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy: enabled, and without those who watch."""
        return vars(self) | {"disabled": 0, "observers": [], "recorders": [], "watchers": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy may be in a process in which nothing was reduced so."""
        vars(self).update(state)
        self._know()

    def _know(self) -> str | None:
        """The key of method and options, if they can be jobs of a chain.

        What it stands for is known from now on, also to graphs that were compiled in another process.
        """
        append, config = self.method.append, self.config
        plain = config.alignment == "carry" and config.lengths in ("one", "sizes")
        if append is None or not plain or not config.fits_chain:
            return None
        key = f"{self.method.name} {config}"
        know_reduction(key, append, config)
        return key

    @property
    def first(self) -> int:
        """The block, counted from 1, with which a reduced pass begins; beyond the last if none is reduced.

        What is trained may act in every block.
        """
        return 1 if self.trained is not None else min(self.plan.layers, default=len(self.blocks) + 1)

    @property
    def active(self) -> bool:
        """Whether passes that begin now are reduced."""
        return not self.disabled and not self.removed

    @property
    def scan_share(self) -> float | None:
        """Measured share of the scans that run; ``None`` if all do, or it was not measured."""
        return getattr(self.trained, "scan_share", None)

    def counted(self, shape: ModelShape) -> ModelShape:
        """The shape, with as many scans as run."""
        share = self.scan_share
        return replace(shape, scan_share=share) if share is not None and isinstance(shape, MambaShape) else shape

    def check_model(self) -> None:
        """Raise :class:`UnsupportedModelError` if the model has changed in ways that the patch cannot follow.

        It then has other blocks than when it was patched, though a block may be inside of a wrapper by now, a block
        has lost its patch, or a layer has become more than weights. Compilers trace the last check, so that what they
        have made is traced again when a layer changes; they do so for the list of blocks by themselves.
        """
        fault = self._fault()
        if fault:
            raise UnsupportedModelError(fault)
        for block in self.blocks if self.adapter.own_code_reads else ():
            mixer = self.adapter.mixer(block)
            if self.adapter.has_layers(mixer):
                self.adapter.check_layers(mixer, weights=False)

    @constant_result  # a compiler takes the answer: raised while it traces, an error would be taken for one of its own
    def _fault(self) -> str:
        """What is wrong with the blocks; nothing if they are as they were."""
        return self._fault_of_patch() or self._fault_of_list()

    def _fault_of_list(self) -> str:
        now = tuple(self.adapter.blocks(self.host))
        if len(now) == len(self._seen) and all(a is b for a, b in zip(now, self._seen, strict=True)):
            return ""
        same = len(now) == len(self.blocks)
        if not same or any(all(m is not block for m in a.modules()) for a, block in zip(now, self.blocks, strict=True)):
            return (
                f"the blocks of {type(self.host).__name__} have changed since it was patched ({len(self.blocks)} then, "
                f"{len(now)} now, or others in their place); call mtrkit.apply_reduction again"
            )
        self._seen = now
        return ""

    def _fault_of_patch(self) -> str:
        for index in range(self.first - 1, len(self.blocks)):
            block = self.blocks[index]
            current = vars(block).get("forward")
            others = isinstance(current, Patched) and getattr(current, "reduction", self) is not self
            if current is None or others or getattr(current, "__func__", None) is type(block).forward:
                return (
                    f"block {index + 1} of {type(self.host).__name__} has lost its patch: something has put an earlier "
                    "`forward` back since mtrkit.apply_reduction; call mtrkit.apply_reduction again"
                )
        return ""

    def decide(self, index: int, state: BlockState, num_kept: int, stream: ReducedStream) -> Decision | None:
        """Ask the method, and tell the observers; ``None`` if no link reaches the threshold."""
        decision = self.method.decide(state, num_kept, self.config)
        before, after, by_threshold = state.num_tokens, decision.token_map.num_kept, state.limit is not None
        if by_threshold and stream.slot.shape[1] == self.plan.shape.tokens:
            self.measured.add(state.layer, len(state.hidden), before, after)
        for observer in self.observers:
            observer(index, state, decision, stream)
        return None if by_threshold and before == after else decision


def reductions_in(model: nn.Module) -> list[tuple[nn.Module, Reduction]]:
    """The patched modules in a model or a wrapper around it, each with what its patch is."""
    return [(module, vars(module)[RECORD]) for module in model.modules() if RECORD in vars(module)]
