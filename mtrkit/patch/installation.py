"""Put a reduction into a model, and take it out again."""

from torch import nn

from mtrkit.errors import UnsupportedModelError
from mtrkit.patch.block import PatchedBlock
from mtrkit.patch.entry import GuardedEntry
from mtrkit.patch.gated import GatedBlock
from mtrkit.patch.mixers import check_own_code, make_readable
from mtrkit.patch.one_tensor import OneTensorBlock
from mtrkit.patch.patched import Companion, Replication
from mtrkit.patch.reduction import RECORD, Reduction
from mtrkit.patch.two_tensor import TwoTensorBlock


def install(model: nn.Module, reduction: Reduction) -> None:
    """Patch the blocks in place of an earlier patch; if anything fails or interrupts, the model is as it was."""
    before: Reduction | None = vars(model).get(RECORD)
    try:
        if before is not None:
            uninstall(before)
        _install(model, reduction)
    except BaseException:
        uninstall(reduction)
        if before is not None:
            before.removed = False
            before.journal.redo()
        raise


def uninstall(reduction: Reduction) -> None:
    """Take the patch off. What others have wrapped is theirs and stays; it runs as if there were no patch."""
    reduction.removed = True
    reduction.journal.undo()


def _install(model: nn.Module, reduction: Reduction) -> None:
    journal, adapter = reduction.journal, reduction.adapter
    for index, block in [*enumerate(reduction.blocks)][reduction.first - 1 :]:
        other = vars(block).get("forward")
        if isinstance(other, PatchedBlock) and not other.reduction.removed:
            raise UnsupportedModelError(
                f"block {index + 1} of {type(model).__name__} belongs to another model too, which is reduced; call "
                "mtrkit.remove_reduction on that one first, or give this one blocks of its own (copy.deepcopy)"
            )
        patched = _block_class(reduction)(block, index, reduction)
        if patched.repeats:
            check_own_code(block, adapter, vars(block).get("forward"))
        if patched.needs_readable:
            check_own_code(adapter.mixer(block), adapter, None)  # one of the instance's own is refused below
            make_readable(adapter.mixer(block), adapter, journal)
        journal.set(block, "forward", patched)
        journal.set(block, "extra_repr", patched.extra_repr)
        journal.set(block, Replication.name, Replication(block))
    entries = adapter.entries if reduction.first <= len(reduction.blocks) else ()
    for entry in entries:
        journal.set(model, entry, GuardedEntry(model, entry, reduction))
    if entries:
        journal.set(model, Replication.name, Replication(model))
    if reduction.trained is not None:
        journal.set(model, Companion.name, Companion(model, reduction.trained))
    journal.set(model, RECORD, reduction)


def _block_class(reduction: Reduction) -> type[PatchedBlock]:
    if reduction.trained is not None:
        return GatedBlock
    return OneTensorBlock if reduction.adapter.single_stream else TwoTensorBlock
