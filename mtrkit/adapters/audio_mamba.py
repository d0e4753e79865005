"""Audio-Mamba (AuM), which is Vim on spectrograms.

Source: Erol et al., "Audio Mamba: Bidirectional State Space Model for Audio Representation Learning", arXiv:2406.03344.
"""

from typing import Any

from mtrkit.adapters.base import SpecialAt, register_adapter
from mtrkit.adapters.official import HustvlVimAdapter, OfficialMamba
from mtrkit.adapters.stack import last
from mtrkit.schedule import ModelShape


@register_adapter
class AudioMambaAdapter(HustvlVimAdapter):
    """``AudioMamba``: spectrograms (frames, bins) without channels; a call may give patches of another size."""

    name = "audio_mamba"
    summary = "AudioMamba (AuM) of the kaistmm/Audio-Mamba-AuM repository, on spectrograms"
    marks = (*HustvlVimAdapter.marks, "spectrogram_size")
    arguments: tuple[str, ...] = (*HustvlVimAdapter.arguments[:-1], "patch_size", "strides")

    def mismatch(self, model: Any) -> str | None:
        return OfficialMamba.mismatch(self, model)

    def special_at(self, model: Any) -> SpecialAt:
        double, in_middle = model.use_double_cls_token, model.use_middle_cls_token
        at_end = model.if_cls_token and model.use_end_cls_token and not (double or in_middle)
        return last if at_end else super().special_at(model)

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        frames, bins = input_size
        return super().shape(model, (1, bins, frames))

    def input_size(self, model: Any) -> tuple[int, ...]:
        bins, frames = model.spectrogram_size
        return (frames, bins)

    def mismatch_of_size(self, model: Any, input_size: tuple[int, ...]) -> str | None:
        if len(input_size) == 2:
            return None
        return f"takes spectrograms such as {self.input_size(model)}: give (frames, frequency bins)"
