"""Selective scan, causal convolution and the mixer, with backends that say why they can or cannot run."""

from mtrkit.native.weights import DirectionWeights, MixerWeights
from mtrkit.scan.backend import BackendStatus
from mtrkit.scan.conv import causal_conv1d
from mtrkit.scan.dispatch import backend_for, length_last, scan_backends, scan_op, use_scan_backend
from mtrkit.scan.interface import selective_scan
from mtrkit.scan.mixer import Signals, mixer_forward

__all__ = [
    "BackendStatus",
    "DirectionWeights",
    "MixerWeights",
    "Signals",
    "backend_for",
    "causal_conv1d",
    "length_last",
    "mixer_forward",
    "scan_backends",
    "scan_op",
    "selective_scan",
    "use_scan_backend",
]
