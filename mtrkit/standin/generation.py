"""``mamba_ssm.utils.generation``: texts token by token, from the states that mixers keep."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import OptionError
from mtrkit.standin.conv import refuse


@dataclass
class InferenceParams:
    """Where a generation keeps what its mixers go on from.

    Attributes:
        max_seqlen: Length that the text may reach.
        max_batch_size: Number of texts.
        seqlen_offset: Number of tokens that the model has seen; 0 begins anew.
        batch_size_offset: Not used by Mamba.
        key_value_memory_dict: The states, by the ``layer_idx`` of the mixer.
        lengths_per_sample: (B,), not used by Mamba.
    """

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin anew; the states are overwritten by what comes."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


@dataclass
class Generated:
    """What :func:`decode` returns.

    Attributes:
        sequences: (B, L): the texts, with their beginnings.
        scores: Per new token the logits (B, vocabulary), if asked for.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None


class GenerationMixin:
    """Gives a language model ``generate()``."""

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """Made by the model."""
        raise NotImplementedError

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> Tensor | Generated:
        """The texts (B, L), or all of :class:`Generated`; see :func:`decode` for the arguments."""
        choice: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temperature}
        found = decode(input_ids, self, max_length, **choice, output_scores=output_scores, **kwargs)
        return found if return_dict_in_generate else found.sequences


@torch.inference_mode()
def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Any = None,
) -> Generated:
    """Go on with texts of one length.

    Args:
        input_ids: (B, L), the beginnings.
        model: Called as ``model(ids, position_ids=…, inference_params=…, num_last_tokens=1).logits``.
        max_length: Length with the beginning.
        top_k: See :func:`sample`.
        top_p: See there.
        min_p: See there.
        temperature: See there.
        repetition_penalty: Logits of tokens that the text has are divided by it, negative ones multiplied.
        eos_token_id: Ends the generation once it is the new token of every text. Default: none.
        teacher_outputs: (B, any): tokens to take in the place of sampled ones, by their position.
        vocab_size: Logits behind it are left out, such as those of padding. Default: none.
        cg: Whether the real package uses CUDA graphs; has no effect.
        enable_timing: Not supported.
        output_scores: Whether the logits are returned too.
        streamer: Its ``put`` gets all tokens, its ``end`` is called. Default: none.

    Returns:
        The texts, and the logits if asked for.

    Raises:
        OptionError: ``enable_timing``.
    """
    del cg
    refuse("decode", enable_timing=enable_timing)
    state = InferenceParams(max_length, input_ids.shape[0])
    text, new = input_ids, input_ids
    scores: list[Tensor] = []
    _stream(streamer, new)
    while True:
        position = torch.full_like(new, state.seqlen_offset) if state.seqlen_offset else None
        found = model(new, position_ids=position, inference_params=state, num_last_tokens=1).logits.squeeze(1)
        logits = found if vocab_size is None else found[..., :vocab_size]
        if output_scores:
            scores.append(logits.clone())
        state.seqlen_offset += new.shape[1]
        given = _given(teacher_outputs, state.seqlen_offset)
        if given is None:
            given = sample(_penalised(logits, text, repetition_penalty), top_k, top_p, min_p, temperature)[:, None]
        new = given
        text = torch.cat([text, new], dim=1)
        _stream(streamer, new)
        if state.seqlen_offset >= max_length - 1 or (eos_token_id is not None and bool((new == eos_token_id).all())):
            break
    if streamer is not None:
        streamer.end()
    return Generated(text, tuple(scores) if output_scores else None)


def sample(logits: Tensor, top_k: int = 1, top_p: float = 0.0, min_p: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Choose a token (B,) per row of logits (B, vocabulary).

    Args:
        logits: The logits, which stay as they are.
        top_k: Among so many of the likeliest; 1 takes the likeliest one, 0 does not limit it.
        top_p: Among the likeliest that have this probability together; 0 does not limit it.
        min_p: With ``top_k=0``: among those that have this share of the greatest probability; 0 does not limit it.
        temperature: The logits are divided by it.

    Raises:
        OptionError: A ``top_p`` or ``min_p`` that is not within 0 and 1.
    """
    if not 0 <= top_p <= 1 or not 0 <= min_p <= 1:
        raise OptionError(f"top_p={top_p} and min_p={min_p}; expected numbers from 0 to 1")
    if top_k == 1:
        return logits.argmax(dim=-1)
    scaled = logits / temperature
    if top_k > 0:
        scaled = _without(scaled, scaled < scaled.topk(min(top_k, scaled.shape[-1])).values[..., -1:])
    elif min_p > 0:
        likely = logits.softmax(-1)
        scaled = _without(scaled, likely < min_p * likely.amax(-1, keepdim=True))
    if 0 < top_p < 1:
        ranked, places = scaled.sort(dim=-1)
        unlikely = ranked.softmax(-1).cumsum(-1) <= 1 - top_p
        scaled = _without(scaled, torch.zeros_like(unlikely).scatter(-1, places, unlikely))
    return torch.multinomial(scaled.softmax(-1), 1).squeeze(-1)


def _without(logits: Tensor, removed: Tensor) -> Tensor:
    return logits.masked_fill(removed, float("-inf"))


def _given(teacher_outputs: Tensor | None, position: int) -> Tensor | None:
    if teacher_outputs is None or teacher_outputs.shape[1] <= position:
        return None
    return teacher_outputs[:, position : position + 1]


def _penalised(logits: Tensor, text: Tensor, penalty: float) -> Tensor:
    if penalty == 1.0:
        return logits
    found = logits.gather(1, text)
    return logits.scatter(1, text, torch.where(found < 0, found * penalty, found / penalty))


def _stream(streamer: Any, tokens: Tensor) -> None:
    if streamer is not None:
        streamer.put(tokens.cpu())
