"""Families that are refused are recognised by form, and told their own reason instead of what others have."""

import pytest
import torch
from torch import nn

import mtrkit
from mtrkit.adapters import UNSUPPORTED
from tests.helpers.families import FAMILIES
from tests.standins import forks, language, more_families
from tests.standins.hustvl_vim import VisionMamba
from tests.standins.language import LANGUAGE
from tests.standins.mamba_vision import MambaVision
from tests.test_matrix import fingerprint, run


def module(**parts):
    """A module with these attributes."""
    made = nn.Module()
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def table(*shape):
    return nn.Parameter(torch.zeros(*shape))


def ss2d(**more):
    """The parameters of VMamba's mixer at width 8: four directions beside each other."""
    scan = {"x_proj_weight": table(4, 3, 8), "dt_projs_weight": table(4, 8, 1), "dt_projs_bias": table(4, 8)}
    return module(in_proj=nn.Linear(8, 8), A_logs=table(32, 1), Ds=table(32), **scan, **more)


def vmamba(**more):
    block = module(norm=nn.LayerNorm(8), op=ss2d(**more), norm2=nn.LayerNorm(8), mlp=nn.Linear(8, 8))
    stage = module(blocks=nn.Sequential(block), downsample=nn.Conv2d(8, 16, 2, 2))
    return module(patch_embed=nn.Conv2d(3, 8, 4, 4), layers=nn.ModuleList([stage]), classifier=nn.Linear(8, 10))


def local_vmamba():
    return vmamba(multi_scan=nn.Module())


def local_vim():
    """Vim's skeleton, which the adapter of hustvl/Vim looks for, with the mixer of LocalMamba."""
    model = FAMILIES["hustvl_vim_mean"]()
    for block in model.layers:
        mixer = {f"conv1d_{i}": nn.Conv1d(64, 64, 4) for i in range(4)}
        block.mixer = module(in_proj=nn.Linear(32, 128), out_proj=nn.Linear(64, 32), multi_scan=nn.Module(), **mixer)
    return model


def plain_mamba():
    mixer = module(
        in_proj=nn.Linear(8, 32), conv2d=nn.Conv2d(16, 16, 7), A_log=table(16, 16), direction_Bs=table(5, 16)
    )
    layer = module(norm=nn.LayerNorm(8), mamba=mixer)
    return module(patch_embed=nn.Conv2d(3, 8, 16, 16), layers=nn.ModuleList([layer]), head=nn.Linear(8, 10))


def vim_for_segmentation():
    """As in seg/backbone/vim.py: no class token, no head, the features of some blocks."""
    model = VisionMamba(if_cls_token=False, final_pool_type="mean")
    del model.head
    model.out_indices = [1, 2, 3, 5]
    return model


def arm():
    """Its blocks have an MLP, its mixers four directions."""
    mixer = module(in_proj=nn.Linear(8, 16), A_log=table(8, 16), A_b_log=table(8, 16), D=table(8))
    mixer.A_c_log, mixer.A_c_b_log, mixer.bimamba_type = table(8, 16), table(8, 16), "v3"
    model = FAMILIES["hustvl_vim"]()
    model.layers = nn.ModuleList([module(mixer=mixer, norm1=nn.LayerNorm(8), norm2=nn.LayerNorm(8), mlp=nn.Identity())])
    return model


def fastvim():
    """The same stack as its repository's Vim, with mixers that pool."""
    model = more_families.FastVimVim()
    for block in model.layers:
        block.mixer.collapse_method, block.mixer.scanpath_type = "mean", "rowwise"
    return model


def mamba2_of_mamba_ssm():
    model = language.MixerModel()
    for block in model.layers:
        block.mixer = module(in_proj=nn.Linear(32, 200), conv1d=nn.Conv1d(80, 80, 4), norm=nn.LayerNorm(64))
        block.mixer.A_log, block.mixer.D, block.mixer.dt_bias = table(4), table(4), table(4)
    return model


REFUSED = [
    ("vmamba", vmamba, "3x3 convolution"),
    ("local_mamba", local_vmamba, "windows"),
    ("local_mamba", local_vim, "windows"),
    ("plain_mamba", plain_mamba, "serpentine"),
    ("vim_dense", vim_for_segmentation, "features_only=True"),
    ("famba_v", forks.FambaV, "reads the first token"),
    ("r_meeto", forks.r_meeto, 'method="rmeeto"'),
    ("dyvm", forks.dyvm, "load_release"),
    ("arm", arm, "columns of a square grid"),
    ("fastvim", fastvim, "pool the tokens along rows or columns"),
    ("mamba2", mamba2_of_mamba_ssm, "one decay per head"),
]
TRANSFORMERS = {  # name of the class and options → family
    "Mamba2": ("mamba2", {"state_size": 8, "head_dim": 16, "num_heads": 4, "n_groups": 1}),
    "Jamba": ("jamba", {"num_experts": 2}),
    "Bamba": ("mamba2", {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}),
    "Zamba": ("zamba", {"mamba_dt_rank": 2, "n_mamba_heads": 2, "tie_word_embeddings": False}),
    "Zamba2": ("mamba2", {"num_hidden_layers": 54, "n_mamba_heads": 4}),
    "FalconH1": ("mamba2", {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_ssm": 64}),
    "NemotronH": ("mamba2", {}),
    "GraniteMoeHybrid": ("mamba2", {"mamba_n_heads": 4, "mamba_d_head": 16, "layer_types": ["mamba"] * 4}),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("name", "build", "says"), REFUSED, ids=[build.__name__ for _, build, _ in REFUSED])
def test_a_known_family_is_told_its_reason(name, build, says, wrapped):
    model = nn.Sequential(build()) if wrapped else build()
    before = fingerprint(model)
    with pytest.raises(mtrkit.UnsupportedModelError, match=rf"family {name} .*cannot be reduced.*{says}") as refused:
        mtrkit.apply_reduction(model)
    assert "has no `" not in str(refused.value) and "\n" not in str(refused.value)
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_other_families_of_transformers_are_told_their_reason(name):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, f"{name}Model"):
        pytest.skip(f"this version has no {name}Model")
    family, options = TRANSFORMERS[name]
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device("meta"):
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes | heads | options))
    with pytest.raises(mtrkit.UnsupportedModelError, match=rf"^{name}Model is of the family {family} .*{name[:5]}.*:"):
        mtrkit.apply_reduction(model)


ALL = FAMILIES | LANGUAGE | {"mamba_vision": MambaVision}


@pytest.mark.parametrize("name", ALL)
def test_no_supported_model_looks_like_a_refused_one(name):
    pytest.importorskip("timm") if name.startswith("timm") else None
    model = ALL[name]()
    assert not [family.name for family in UNSUPPORTED if family.fits(model)]


def test_a_vim_that_reads_between_its_blocks_is_refused_with_a_head_too():
    model = FAMILIES["hustvl_vim_mean"]()
    wanted = run(model)
    model.out_indices = [1, 3]
    with pytest.raises(mtrkit.UnsupportedModelError, match="features_only=True"):
        mtrkit.apply_reduction(model)
    assert torch.equal(run(model), wanted)


def test_a_supported_backbone_is_found_beside_a_refused_one():
    both = nn.ModuleList([vmamba(), FAMILIES["vim"]()])
    mtrkit.apply_reduction(both, ratio=0.2)
    assert mtrkit.reduction_info(both[1]).adapter == "vim"
