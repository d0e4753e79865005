"""The language model of the stand-ins, its generation, and what forks need of mamba_ssm.utils."""

import importlib
import logging
import pickle
import sys

import pytest
import torch
from torch import nn

import mtrkit
from mtrkit.standin import block, conv, generation, norms, scan
from mtrkit.standin.language import MambaConfig, MambaLMHeadModel, MixerModel, create_block
from mtrkit.standin.mamba import Mamba
from mtrkit.standin.names import OUTSIDE
from tests.standin.test_install import install  # noqa: F401

IDS = torch.randint(37, (2, 7), generator=torch.Generator().manual_seed(1))


def tiny(**options):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layer": 3, "vocab_size": 37, "ssm_cfg": {"d_state": 8}}
    return MambaLMHeadModel(MambaConfig(**sizes | options)).eval()


@pytest.mark.parametrize("options", [{}, {"fused_add_norm": False, "rms_norm": False}, {"d_intermediate": 64}])
def test_generation_gives_what_whole_texts_give(options):
    model = tiny(**options)
    found = model.generate(IDS, 12, return_dict_in_generate=True, output_scores=True, cg=True)
    with torch.no_grad():
        whole = model(found.sequences[:, :-1]).logits[:, 6:]
    assert found.sequences.shape == (2, 12) and torch.equal(found.sequences[:, :7], IDS)
    torch.testing.assert_close(torch.stack(found.scores, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.sequences[:, 7:], whole.argmax(-1))


def test_sizes_names_and_tied_weights():
    model = tiny()
    assert model.lm_head.weight is model.backbone.embedding.weight and model.lm_head.weight.shape == (40, 32)
    names = {name.rpartition("layers.0.")[2] for name in model.state_dict() if "layers.0." in name}
    plain = {f"mixer.{name}" for name in Mamba(32).state_dict()}
    assert names == plain | {"norm.weight"}
    assert model(IDS, num_last_tokens=2).logits.shape == (2, 2, 40)
    assert tiny(tie_embeddings=False).lm_head.weight.shape == (40, 32)


def test_it_is_reduced_as_the_real_one():
    model = tiny()
    dense = model(IDS).logits
    mtrkit.apply_reduction(model, "tome", ratio=0, input_size=(7,))
    assert torch.equal(model(IDS).logits, dense)
    mtrkit.apply_reduction(model, "tome", tokens=[7, 5, 5], input_size=(7,))
    assert mtrkit.reduction_info(model).adapter == "mamba_lm" and not torch.allclose(model(IDS).logits, dense)
    with pytest.raises(mtrkit.UnsupportedModelError, match="generation"):
        model.generate(IDS, 9)


def test_saved_and_loaded(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "model")
    again = MambaLMHeadModel.from_pretrained(tmp_path / "model").eval()
    assert again.config == model.config and torch.equal(again(IDS).logits, model(IDS).logits)
    assert (
        MambaLMHeadModel.from_pretrained(tmp_path / "model", dtype=torch.float64).lm_head.weight.dtype is torch.float64
    )
    with pytest.raises(mtrkit.CheckpointError, match="has no config.json"):
        MambaLMHeadModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps(print)])
def test_files_that_do_not_hold_weights_are_refused(tmp_path, content):
    tiny().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(mtrkit.CheckpointError, match="does not hold weights"):
        MambaLMHeadModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: create_block(32, ssm_cfg={"layer": "Mamba2"}), "layer='Mamba2'; mtrkit stands in for 'Mamba1'"),
        (lambda: tiny(attn_layer_idx=[1]), "block 1 has attention"),
        (lambda: MixerModel(32, 2, 40), "without vocab_size; give it by name"),
        (lambda: block.Block(8, Mamba, norm_cls=nn.Identity, fused_add_norm=True), "not Identity"),
    ],
)
def test_what_is_missing_is_refused(make, says):
    with pytest.raises(mtrkit.OptionError, match=says):
        make()


def test_both_blocks_take_their_arguments_in_their_order():
    early = block.EarlyBlock(8, Mamba, nn.LayerNorm, True)
    late = block.Block(8, Mamba, nn.Identity, nn.LayerNorm, True)
    late.load_state_dict(early.state_dict())
    x = torch.randn(1, 3, 8)
    for a, b in zip(early(x, x), late(x, x), strict=True):
        assert torch.equal(a, b)


def test_sampling():
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, 3.0, 2.0, -1.0]]).repeat(400, 1)
    kept = logits.clone()

    def chosen(**options):
        return set(generation.sample(logits, **options).tolist())

    assert chosen() == {1} and chosen(top_k=2) == {1, 2} and chosen(top_k=0) >= {0, 1, 2}
    assert chosen(top_k=0, top_p=0.9) == {1, 2} and chosen(top_k=0, min_p=0.2) == {1, 2}
    assert chosen(top_k=0, temperature=0.05) == {1} and torch.equal(logits, kept)
    with pytest.raises(mtrkit.OptionError, match="from 0 to 1"):
        generation.sample(logits, top_k=0, top_p=1.5)


def test_generation_follows_its_options():
    model = tiny()
    forced = torch.arange(10).expand(2, -1)
    assert torch.equal(model.generate(IDS, 10, teacher_outputs=forced)[:, 7:], forced[:, 7:])
    first = model.generate(IDS[:1], 8)[0, 7].item()
    assert model.generate(IDS[:1], 30, eos_token_id=first).shape == (1, 8)
    assert (model.generate(IDS, 12, vocab_size=5)[:, 7:] < 5).all()
    assert len(set(model.generate(IDS[:1], 14, repetition_penalty=1e6)[0, 7:].tolist())) == 7


def test_states_are_of_one_batch_and_one_mixer():
    mixer, state = Mamba(8, layer_idx=0), generation.InferenceParams(9, 2)
    mixer(torch.randn(2, 3, 8), inference_params=state)
    state.seqlen_offset = 3
    with pytest.raises(mtrkit.InputError, match="2 samples, and 3 came"):
        mixer(torch.randn(3, 1, 8), inference_params=state)
    with pytest.raises(mtrkit.OptionError, match="layer_idx"):
        Mamba(8)(torch.randn(2, 3, 8), inference_params=state)


def test_norms_inside_of_the_fused_mixer():
    """As in Falcon-Mamba, against the steps one by one."""
    torch.manual_seed(0)
    mixer, x = Mamba(8, d_state=4, dt_rank=3), torch.randn(2, 6, 8)
    weights = torch.rand(3) + 0.5, torch.rand(4) + 0.5, torch.rand(4) + 0.5
    xz = mixer.in_proj(x).transpose(1, 2)
    u = nn.functional.silu(mixer.conv1d(xz[:, :16])[..., :6]).transpose(1, 2)
    parts = mixer.x_proj(u).split([3, 4, 4], dim=-1)
    dt, B, C = (p / (p.square().mean(-1, keepdim=True) + 0.1).sqrt() * w for p, w in zip(parts, weights, strict=True))
    delta, A = (dt @ mixer.dt_proj.weight.T).transpose(1, 2), -mixer.A_log.exp()
    last = (mixer.D, xz[:, 16:], mixer.dt_proj.bias, True)
    wanted = scan.selective_scan_ref(u.transpose(1, 2), delta, A, B.transpose(1, 2), C.transpose(1, 2), *last)
    given = (mixer.x_proj.weight, mixer.dt_proj.weight, mixer.out_proj.weight, None, A, None, None, mixer.D)
    options = {"dt_rms_weight": weights[0], "b_rms_weight": weights[1], "c_rms_weight": weights[2]}
    options |= {"delta_bias": mixer.dt_proj.bias, "b_c_dt_rms_eps": 0.1}
    found = scan.mamba_inner_fn(xz, mixer.conv1d.weight, mixer.conv1d.bias, *given, **options)
    torch.testing.assert_close(found, mixer.out_proj(wanted.transpose(1, 2)), rtol=1e-4, atol=1e-5)
    with pytest.raises(mtrkit.InputError, match=r"norm of 2 weights came for 3"):
        scan.mamba_inner_fn(xz, mixer.conv1d.weight, None, *given, dt_rms_weight=torch.ones(2))


def test_the_references_and_the_norm_that_the_package_calls():
    x, weight, state = torch.randn(2, 4, 5), torch.randn(4, 3), torch.randn(2, 4, 3)
    for name, function in (("ref", conv.causal_conv1d_ref), ("fn", conv.causal_conv1d_fn)):
        y, final = function(x, weight, initial_states=state[..., 1:], return_final_states=True, activation="silu")
        assert torch.equal(final, x[..., 3:]), name
    a, b = state.clone(), state.clone()
    both = conv.causal_conv1d_update_ref(x, a, weight), conv.causal_conv1d_update(x, b, weight)
    assert torch.equal(*both) and torch.equal(a, b)
    (normed,) = norms.layer_norm_forward(x, torch.ones(5), None, 1e-5, None, residual_dtype=None, is_rms_norm=True)
    torch.testing.assert_close(normed, x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt())


def test_a_fork_whose_utils_do_not_import_keeps_its_own_mixers(install, caplog):  # noqa: F811
    """Its generation imports names that transformers has taken away."""
    install(
        {
            "mamba_ssm/__init__.py": "import mamba_ssm.models.mixer_seq_simple\n",
            "mamba_ssm/models/__init__.py": "",
            "mamba_ssm/models/mixer_seq_simple.py": "from mamba_ssm.utils.generation import GenerationMixin\n",
            "mamba_ssm/utils/__init__.py": "",
            "mamba_ssm/utils/generation.py": "from os import gone_since_5\n",
        }
    )
    with caplog.at_level(logging.WARNING, logger="mtrkit"), mtrkit.as_mamba_ssm() as stand_ins:
        fork = importlib.import_module("mamba_ssm.models.mixer_seq_simple")
        assert fork.__file__ and fork.GenerationMixin is generation.GenerationMixin
        assert "mamba_ssm" not in stand_ins.reasons and "gone_since_5" in stand_ins.reasons[OUTSIDE[0]]
    assert not caplog.records and not [name for name in sys.modules if name.startswith("mamba_ssm")]
