"""Selective scan, causal convolution and the mixer, with backends that say why they can or cannot run."""

from mtrkit.native.chain import Chain
from mtrkit.native.mixer import PlacedBlock, place_block
from mtrkit.native.token_jobs import narrow
from mtrkit.native.weights import BlockWeights, DirectionWeights, MixerWeights
from mtrkit.scan.backend import BackendStatus
from mtrkit.scan.dispatch import (
    backend_for,
    backend_reason,
    can_look,
    length_last,
    scan_backends,
    slow_scan,
    use_scan_backend,
    writes_runs_out,
)
from mtrkit.scan.flops import flop_handles
from mtrkit.scan.interface import causal_conv1d, selective_scan
from mtrkit.scan.mixer import direction_layers, mixer_forward, mixer_parts
from mtrkit.scan.steps import DirectionLayers, MixerLayers, Parts
from mtrkit.types import Signals

__all__ = [
    "BackendStatus",
    "BlockWeights",
    "Chain",
    "DirectionLayers",
    "DirectionWeights",
    "MixerLayers",
    "MixerWeights",
    "Parts",
    "PlacedBlock",
    "Signals",
    "backend_for",
    "backend_reason",
    "can_look",
    "causal_conv1d",
    "direction_layers",
    "flop_handles",
    "length_last",
    "mixer_forward",
    "mixer_parts",
    "narrow",
    "place_block",
    "scan_backends",
    "selective_scan",
    "slow_scan",
    "use_scan_backend",
    "writes_runs_out",
]
