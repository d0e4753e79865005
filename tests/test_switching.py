"""A patch that is switched, replaced, interrupted or wrapped: a pass is one thing throughout, and nothing is lost."""

import threading

import pytest
import torch

import mtrkit
from mtrkit.errors import StreamError, UnsupportedModelError
from mtrkit.ops import open_stream, stream_tokens
from mtrkit.patch import engine
from tests.helpers.families import FAMILIES
from tests.test_matrix import IMAGES, fingerprint, run


@pytest.mark.parametrize("family", ["vim", "hustvl_vim", "timm_vit"])
def test_a_pass_is_reduced_or_dense_from_end_to_end(family):
    """Another thread switches at every block: what the first reducing block has decided holds."""
    model, method = FAMILIES[family](), "tome" if family == "timm_vit" else "mtr"
    mtrkit.apply_reduction(model, method, ratio=0.3)
    reduced = run(model)
    with mtrkit.reduction_disabled(model):
        dense = run(model)
    stop = threading.Event()

    def switch():
        while not stop.is_set():
            with mtrkit.reduction_disabled(model):
                stop.wait(1e-4)
            stop.wait(1e-4)

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        answers = [run(model) for _ in range(10)]
    finally:
        stop.set()
        thread.join()
    for answer in answers:
        assert torch.equal(answer, reduced) or torch.equal(answer, dense)


@pytest.mark.parametrize("begins_reduced", [True, False])
def test_switching_in_the_middle_of_a_pass_changes_nothing(begins_reduced):
    model = mtrkit.apply_reduction(FAMILIES["vim"](), ratio=0.3)
    with mtrkit.reduction_disabled(model):
        dense = run(model)
    wanted = run(model) if begins_reduced else dense
    reduction = vars(model)[engine.RECORD]
    middle = max(reduction.plan.layers)  # a block behind the first reducing one
    reduction.disabled = 0 if begins_reduced else 1
    handle = model.layers[middle].register_forward_pre_hook(
        lambda *_: setattr(reduction, "disabled", int(begins_reduced))
    )
    assert torch.equal(run(model), wanted)
    handle.remove()


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interrupted_patch_leaves_the_model_as_it_was(monkeypatch, after, patched):
    model = FAMILIES["hustvl_vim"]()
    if patched:
        mtrkit.apply_reduction(model, "mtr", ratio=0.2)
    before, marks, info = run(model), fingerprint(model), str(mtrkit.reduction_info(model))
    calls, put = [], engine.Journal.set

    def interrupted(journal, module, name, value):
        calls.append(name)
        if len(calls) > after:
            raise Interrupted
        put(journal, module, name, value)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(engine.Journal, "set", interrupted)
        mtrkit.apply_reduction(model, "hsa", ratio=0.4)
    assert torch.equal(run(model), before)
    assert fingerprint(model) == marks and str(mtrkit.reduction_info(model)) == info


def test_what_others_have_put_in_place_of_the_patch_stays_theirs():
    model = FAMILIES["vim"]()
    dense = run(model)
    mtrkit.apply_reduction(model, ratio=0.3)
    block = model.layers[4]
    patched, calls = block.forward, []
    block.forward = lambda *args: calls.append(1) or patched(*args)
    mtrkit.remove_reduction(model)
    assert torch.equal(run(model), dense) and calls == [1]


def test_a_mixer_that_somebody_else_calls_through_is_refused_before_anything_changes():
    model = FAMILIES["hustvl_vim"]()
    for block in model.layers:
        block.mixer.forward = block.mixer.forward
    marks = fingerprint(model)
    with pytest.raises(UnsupportedModelError, match="would hide what the method reads"):
        mtrkit.apply_reduction(model, ratio=0.3)
    assert fingerprint(model) == marks


def test_hooks_on_mixers_see_tensors():
    model, seen = mtrkit.apply_reduction(FAMILIES["hustvl_vim"](), ratio=0.3), []
    for block in model.layers:
        block.mixer.register_forward_hook(lambda module, args, output: seen.append(output))
    run(model)
    assert len(seen) == 6 and all(type(output) is torch.Tensor for output in seen)


def test_what_travels_between_blocks_says_what_it_is():
    stream = open_stream(torch.randn(2, 5, 3))
    for use in (lambda: stream.dtype, lambda: torch.ones(1) + stream, lambda: stream * 2, lambda: stream + stream):
        with pytest.raises(StreamError, match="stream_tokens"):
            use()
    assert not hasattr(stream, "dtype")
    assert torch.equal(stream_tokens(torch.zeros(2, 5, 3), stream), stream.residual)


def test_only_replicas_run_on_replicas():
    """Tested on one device; what DataParallel itself does with them needs two."""
    model = mtrkit.apply_reduction(FAMILIES["vim"](), ratio=0.3)
    block = model.layers[3]
    replica = block._replicate_for_data_parallel()
    assert replica.forward.module is replica and block.forward.module is block
    mtrkit.remove_reduction(model)
    assert "_replicate_for_data_parallel" not in vars(block)


def test_float64_models_are_float64_throughout():
    """D and the bias of Δ were rounded to float32 on the way."""
    model = mtrkit.apply_reduction(FAMILIES["vim"]().double(), ratio=0.3)
    images = IMAGES.double()
    before = run(model, images)
    for change in ("D", "dt_proj.bias", "A_log"):
        with torch.no_grad():
            for block in model.layers:
                block.mixer.get_parameter(change).mul_(1 + 1e-10)
        after = run(model, images)
        assert not torch.equal(after, before) and (after - before).norm() < 1e-6 * before.norm(), change
        before = after
