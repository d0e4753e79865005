"""Language Mamba for the tests: a stand-in for `mamba_ssm`'s models, tiny ones of both families, and plain loops.

The original `mamba_ssm` cannot be imported without its CUDA extension. The stand-in has its attribute names,
signatures and state-dict keys, and loops over tokens that share nothing with mtrkit.
"""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.standins import hustvl_vim

VOCABULARY = 40


class Mamba(nn.Module):
    """The one-direction mixer."""

    def __init__(self, d_model, d_state=8, d_conv=4, expand=2, conv_bias=True, bias=False, layer_idx=None):
        super().__init__()
        inner, rank = expand * d_model, -(-d_model // 16)
        self.d_model, self.d_state, self.d_conv, self.d_inner, self.dt_rank = d_model, d_state, d_conv, inner, rank
        self.use_fast_path, self.layer_idx, self.activation = True, layer_idx, "silu"
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias)
        self.act = nn.SiLU()
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=bias)

    def forward(self, hidden_states, inference_params=None):
        """A whole text; a step of generation writes its state."""
        out, _, state = plain_mixer(self, hidden_states)
        if inference_params is not None:
            inference_params[self.layer_idx] = state
        return out


class Block(nn.Module):
    """Add, norm, mixer."""

    def __init__(self, dim, index, fused, **mixer):
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = True, fused
        self.norm, self.mixer, self.mlp = hustvl_vim.RMSNorm(dim), Mamba(dim, layer_idx=index, **mixer), None

    def forward(self, hidden_states, residual=None, inference_params=None, **mixer_kwargs):
        """Return the mixer's output and the running sum without it."""
        if self.fused_add_norm:
            hidden_states, residual = hustvl_vim.fused_add_norm(hidden_states, self.norm, residual)
        else:
            residual = hidden_states if residual is None else hidden_states + residual
            hidden_states = self.norm(residual.to(self.norm.weight.dtype))
            residual = residual.float()
        return self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs), residual


class MixerModel(nn.Module):
    """The stack."""

    def __init__(self, d_model=32, n_layer=6, vocab_size=VOCABULARY, fused_add_norm=True, **ssm_cfg):
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = True, fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(Block(d_model, i, fused_add_norm, **ssm_cfg) for i in range(n_layer))
        self.norm_f = hustvl_vim.RMSNorm(d_model)

    def forward(self, input_ids, inference_params=None, **mixer_kwargs):
        """Ids (B, L) to features (B, L, D)."""
        hidden_states, residual = self.embedding(input_ids), None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual, inference_params=inference_params, **mixer_kwargs)
        return self.norm_f(hidden_states + residual).to(hidden_states.dtype)


class MambaLMHeadModel(nn.Module):
    """The stack under a head that shares the embedding's weight."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = MixerModel(**options)
        self.lm_head = nn.Linear(self.backbone.embedding.embedding_dim, VOCABULARY, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, input_ids, position_ids=None, inference_params=None, num_last_tokens=0, **mixer_kwargs):
        """Ids (B, L) to an ``LMOutput`` with logits (B, L, vocabulary)."""
        del position_ids
        hidden_states = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        if num_last_tokens > 0:
            hidden_states = hidden_states[:, -num_last_tokens:]
        return LMOutput(self.lm_head(hidden_states))


LMOutput = namedtuple("LMOutput", ["logits"])


def mamba_lm(**options):
    """A tiny model of the ``mamba_ssm`` form."""
    return _spread(MambaLMHeadModel(**options).eval())


def hf_mamba(bias=False, conv_bias=True, **options):
    """A tiny one of ``transformers``; skips the test where that is not installed."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 6}
    config = transformers.MambaConfig(**sizes, use_bias=bias, use_conv_bias=conv_bias, **options)
    return _spread(transformers.MambaForCausalLM(config).eval())


def twins():
    """The same weights in both forms."""
    hf, plain = hf_mamba(), mamba_lm()
    weights = {name.replace("embeddings", "embedding"): value for name, value in hf.state_dict().items()}
    plain.load_state_dict(weights)
    return hf, plain


LANGUAGE = {"hf_mamba": hf_mamba, "mamba_lm": mamba_lm}


def _spread(model):
    """Give a fresh model weights that make tokens differ, as training does, and biases that do something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "dt_proj" in name and name.endswith("weight"):
                parameter.normal_(0, 1.5)
            elif name.endswith(("in_proj.weight", "x_proj.weight", "out_proj.weight")):
                parameter.mul_(4)
            elif name.endswith(("embedding.weight", "embeddings.weight")):
                parameter.normal_()
            elif name.endswith("bias") and "dt_proj" not in name:
                parameter.normal_(0, 0.3)
    return model


def plain_mixer(mixer, hidden):
    """Output (B, L, D), Δ (B, L, E) and last state of one direction, token by token in float64."""
    rank, n = mixer.dt_proj.in_features, mixer.A_log.shape[1]
    x, z = mixer.in_proj(hidden).double().chunk(2, dim=-1)
    taps, bias = mixer.conv1d.weight[:, 0].double(), mixer.conv1d.bias
    A, width = -torch.exp(mixer.A_log.double()), taps.shape[1]
    state, outputs, deltas = torch.zeros(hidden.shape[0], *A.shape, dtype=torch.float64), [], []
    for t in range(hidden.shape[1]):
        seen = range(max(0, t - width + 1), t + 1)
        u = sum(taps[:, width - 1 - t + s] * x[:, s] for s in seen)
        u = F.silu(u if bias is None else u + bias.double())
        dt, B, C = (mixer.x_proj.weight.double() @ u.T).T.split([rank, n, n], dim=-1)
        delta = F.softplus(dt @ mixer.dt_proj.weight.double().T + mixer.dt_proj.bias.double())
        state = torch.exp(delta[..., None] * A) * state + (delta * u)[..., None] * B[:, None]
        outputs.append(((state * C[:, None]).sum(-1) + mixer.D.double() * u) * F.silu(z[:, t]))
        deltas.append(delta)
    y = torch.stack(outputs, dim=1).to(hidden.dtype)
    return mixer.out_proj(y), torch.stack(deltas, dim=1), state


def plain_mtr(stack, embedding, ids, layers, tokens):
    """Features (L, D) before the last norm of one text by MTR in loops, every place restored, from the paper's text."""
    hidden, residual = [torch.zeros(embedding.embedding_dim)] * len(ids), list(embedding(ids))
    groups = [[place] for place in range(len(ids))]
    for index, block in enumerate(stack.layers):
        residual = [h + r for h, r in zip(hidden, residual, strict=True)]
        out, delta, _ = plain_mixer(block.mixer, block.norm(torch.stack(residual))[None])
        hidden = list(out[0])
        if index + 1 in layers:
            members = _mtr_members(hidden, delta[0].mean(-1).tolist(), len(hidden) - tokens[index])
            hidden = [torch.stack([hidden[i] for i in group]).mean(0) for group in members]
            residual = [torch.stack([residual[i] for i in group]).mean(0) for group in members]
            groups = [[place for i in group for place in groups[i]] for group in members]
    features = torch.zeros(len(ids), embedding.embedding_dim)
    for group, h, r in zip(groups, hidden, residual, strict=True):
        features[group] = h + r
    return features


def _mtr_members(hidden, score, count):
    """The tokens that become one, per token that stays, in the order of the text; the last token is protected."""
    ranked = sorted(range(len(hidden) - 1), key=lambda i: (-score[i], i))
    targets, sources = sorted(ranked[count : len(ranked) - count]), ranked[len(ranked) - count :]
    members = {i: [i] for i in range(len(hidden)) if i not in sources}
    for source in sources:
        likeness = [F.cosine_similarity(hidden[source], hidden[t], dim=0).item() for t in targets]
        members[targets[likeness.index(max(likeness))]].append(source)
    return [members[i] for i in sorted(members)]
