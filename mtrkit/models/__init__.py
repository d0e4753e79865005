"""Vision Mamba models of our own, and safe loading of their checkpoints.

Importing this package registers the models with timm too, once timm is imported.
"""

from mtrkit.models._timm import register_with_timm
from mtrkit.models.checkpoint import load_state_dict
from mtrkit.models.factory import create_model, load_weights
from mtrkit.models.features import FeatureMaps
from mtrkit.models.loading import load_checkpoint
from mtrkit.models.mambar import MambaReg
from mtrkit.models.metadata import checkpoint_metadata, write_metadata
from mtrkit.models.registry import list_models, register_model
from mtrkit.models.videomamba import VideoMamba
from mtrkit.models.vim import Block, VisionMamba

__all__ = [
    "Block",
    "FeatureMaps",
    "MambaReg",
    "VideoMamba",
    "VisionMamba",
    "checkpoint_metadata",
    "create_model",
    "list_models",
    "load_checkpoint",
    "load_state_dict",
    "load_weights",
    "register_model",
    "write_metadata",
]

register_with_timm()
