"""What stands in for what: the modules of mamba_ssm and causal_conv1d that mtrkit has, and the names in them."""

from collections.abc import Mapping
from typing import Any

from mtrkit.standin import block, conv, extensions, generation, hub, language, mamba, norms, scan, state

EXTENSIONS = ("selective_scan_cuda", "causal_conv1d_cuda")
PACKAGES = ("causal_conv1d", "mamba_ssm")
TRITON = tuple(f"mamba_ssm.ops.triton.{name}" for name in ("layer_norm", "layernorm", "selective_state_update"))

OUTSIDE = ("mamba_ssm.utils.generation", "mamba_ssm.utils.hf")  # which import what transformers keeps renaming

_CONV = {"causal_conv1d_fn": conv.causal_conv1d_fn, "causal_conv1d_update": conv.causal_conv1d_update}
_SCAN = {
    name: getattr(scan, name)
    for name in (
        "selective_scan_fn",
        "selective_scan_ref",
        "mamba_inner_fn",
        "mamba_inner_fn_no_out_proj",
        "mamba_inner_ref",
        "bimamba_inner_fn",
    )
}
MODULES: Mapping[str, Mapping[str, Any]] = {
    "selective_scan_cuda": {"fwd": extensions.scan_forward, "bwd": extensions.scan_backward},
    "causal_conv1d_cuda": {
        "causal_conv1d_fwd": extensions.conv_forward,
        "causal_conv1d_bwd": extensions.conv_backward,
        "causal_conv1d_update": extensions.conv_update,
    },
    "causal_conv1d": {"__version__": "1.4.0+mtrkit", **_CONV},
    "causal_conv1d.causal_conv1d_interface": {
        **_CONV,
        "causal_conv1d_ref": conv.causal_conv1d_ref,
        "causal_conv1d_update_ref": conv.causal_conv1d_update_ref,
    },
    "causal_conv1d.cpp_functions": {  # from 1.5.1, for what calls the extension in its form of before
        "causal_conv1d_fwd_function": extensions.conv_forward,
        "causal_conv1d_bwd_function": extensions.conv_backward,
        "causal_conv1d_update_function": extensions.conv_update,
    },
    "mamba_ssm": {
        "__version__": "1.2.2+mtrkit",  # tools compare it: Mamba-1 is here, Mamba-2 is not
        "Mamba": mamba.Mamba,
        "selective_scan_fn": scan.selective_scan_fn,
        "mamba_inner_fn": scan.mamba_inner_fn,
        "MambaLMHeadModel": language.MambaLMHeadModel,
    },
    "mamba_ssm.models": {},
    "mamba_ssm.models.config_mamba": {"MambaConfig": language.MambaConfig},
    "mamba_ssm.models.mixer_seq_simple": {
        "MambaConfig": language.MambaConfig,
        "MambaLMHeadModel": language.MambaLMHeadModel,
        "MixerModel": language.MixerModel,
        "create_block": language.create_block,
        "_init_weights": language.init_weights,
    },
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.block": {"Block": block.Block},
    "mamba_ssm.modules.mamba_simple": {"Mamba": mamba.Mamba, "Block": block.EarlyBlock},
    "mamba_ssm.modules.mlp": {"GatedMLP": block.GatedMLP},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": _SCAN,
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layer_norm": {
        "RMSNorm": norms.RMSNorm,
        "layer_norm_fn": norms.layer_norm_fn,
        "rms_norm_fn": norms.rms_norm_fn,
        "_layer_norm_fwd": norms.layer_norm_forward,
    },
    "mamba_ssm.ops.triton.layernorm": {
        "RMSNorm": norms.RMSNorm,
        "layer_norm_fn": norms.early_layer_norm_fn,
        "rms_norm_fn": norms.early_rms_norm_fn,
    },
    "mamba_ssm.ops.triton.selective_state_update": {
        "selective_state_update": state.selective_state_update,
        "selective_state_update_ref": state.selective_state_update,
    },
    "mamba_ssm.utils": {},
    "mamba_ssm.utils.generation": {
        "GenerationMixin": generation.GenerationMixin,
        "InferenceParams": generation.InferenceParams,
        "decode": generation.decode,
        "sample": generation.sample,
    },
    "mamba_ssm.utils.hf": {
        "load_config_hf": hub.load_config_hf,
        "load_state_dict_hf": hub.load_state_dict_hf,
    },
}
