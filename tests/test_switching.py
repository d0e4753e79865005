"""A patch that is switched, replaced, interrupted or wrapped: a pass is one thing throughout, and nothing is lost."""

import threading

import pytest
import torch

import mtrkit
from mtrkit.errors import MtrkitError, StreamError, UnsupportedModelError
from mtrkit.ops import open_stream, stream_tokens
from mtrkit.patch import RECORD, Journal
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
    reduction = vars(model)[RECORD]
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
    calls, put = [], Journal.set

    def interrupted(journal, module, name, value):
        calls.append(name)
        if len(calls) > after:
            raise Interrupted
        put(journal, module, name, value)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Journal, "set", interrupted)
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


LOST = {
    "indexed": (lambda out: (out[0], out[1][0]), "to take .0. of it"),
    "replaced": (lambda out: (out[0], torch.zeros_like(out[0])), "block 5 was given a Tensor"),
    "a list": (lambda out: (out[0], [*out[1]]), "block 5 was given a list"),
    "a tuple": (lambda out: (out[0], tuple(out[1])), "in front of block 5 a tuple was found"),
    "one less": (lambda out: (out[0][:, 1:], out[1]._replace(residual=out[1].residual[:, 1:])), "in front of block 5"),
    "one more": (lambda out: (out[0], out[1]._replace(residual=out[1].residual.repeat(1, 2, 1))), "added tokens"),
    "fewer samples": (lambda out: (out[0][1:], out[1]), "added tokens or taken some away"),
}


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("family", ["vim", "hustvl_vim"])
def test_a_hook_that_takes_the_stream_apart_or_changes_its_length_is_refused(family, lost):
    """Some ended in errors of torch; where only the residual was returned, the pass went on as a dense one."""
    model, (change, says) = mtrkit.apply_reduction(FAMILIES[family](), "random", ratio=0.3), LOST[lost]
    model.layers[3].register_forward_hook(lambda module, args, output: change(output))
    with pytest.raises(MtrkitError, match=says):
        run(model)


@pytest.mark.parametrize("change", [lambda stream: stream.residual, list], ids=["residual", "list"])
def test_a_stream_that_is_lost_behind_the_last_block_is_missed(change):
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "random", ratio=0.3)
    model.layers[-1].register_forward_hook(lambda module, args, output: (output[0], change(output[1])))
    with pytest.raises(StreamError, match="behind the last block"):
        run(model)


def test_a_hook_may_change_what_both_halves_of_the_stream_say():
    model = mtrkit.apply_reduction(FAMILIES["vim"](), "random", ratio=0.3)
    wanted, seen = run(model), []

    def doubled_and_halved(module, args, output):
        seen.append(stream_tokens(*output).shape)
        return output[0] * 0.5, output[1]._replace(residual=output[1].residual + output[0] * 0.5)

    model.layers[3].register_forward_hook(doubled_and_halved)
    torch.testing.assert_close(run(model), wanted, rtol=1e-4, atol=1e-5)
    assert seen == [(4, 65, 32)]


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
