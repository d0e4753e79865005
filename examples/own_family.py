"""A model family of your own, end to end: about thirty lines make it known, and every method works on it.

    python examples/own_family.py

The family is a classifier of 1-D signals: Mamba blocks in one direction, a class token behind the last sample, names
of its own. It is trained for some seconds to find a short wave in noise, then its tokens are reduced.
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

import mtrkit
from mtrkit.scan import DirectionWeights, MixerWeights, causal_conv1d, mixer_forward
from mtrkit.schedule import MambaShape
from mtrkit.types import MixerCall

# --- your model, as it is ---------------------------------------------------------------------------------------


class Scanner(nn.Module):
    """A Mamba mixer of one direction: (B, L, D) to (B, L, D)."""

    def __init__(self, dim, inner, state=8, rank=4, conv=4):
        super().__init__()
        self.widen = nn.Linear(dim, 2 * inner, bias=False)
        self.smooth = nn.Conv1d(inner, inner, conv, groups=inner)
        self.select = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_decay = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.narrow = nn.Linear(inner, dim, bias=False)
        nn.init.uniform_(self.step.bias, -4.0, -2.0)

    def forward(self, x):
        rank, state = self.step.in_features, self.log_decay.shape[1]
        u, gate = self.widen(x).transpose(1, 2).chunk(2, dim=1)
        u = causal_conv1d(u, self.smooth.weight, self.smooth.bias)  # and SiLU
        delta, b, c = self.select(u.transpose(1, 2)).split((rank, state, state), dim=-1)
        decay = -self.log_decay.exp()
        y = mtrkit.selective_scan(
            u,
            (delta @ self.step.weight.T).transpose(1, 2),
            decay,
            b.transpose(1, 2),
            c.transpose(1, 2),
            self.skip,
            gate,
            self.step.bias,
            delta_softplus=True,
        )
        return self.narrow(y.transpose(1, 2))


class Layer(nn.Module):
    """One tensor in, one tensor out."""

    def __init__(self, dim):
        super().__init__()
        self.scale, self.scanner = nn.LayerNorm(dim), Scanner(dim, 2 * dim)

    def forward(self, x):
        return x + self.scanner(self.scale(x))


class SignalMamba(nn.Module):
    """Signals (B, C, T) to logits (B, classes)."""

    def __init__(self, channels=1, length=512, patch=8, dim=32, depth=4, num_classes=4):
        super().__init__()
        self.length = length
        self.stem = nn.Conv1d(channels, dim, patch, stride=patch)
        self.reader = nn.Parameter(0.02 * torch.randn(1, 1, dim))  # the class token, behind all others
        self.trunk = nn.Sequential(*(Layer(dim) for _ in range(depth)))
        self.readout = nn.Linear(dim, num_classes)

    def forward(self, signals):
        x = self.stem(signals).transpose(1, 2)
        x = torch.cat([x, self.reader.expand(len(x), -1, -1)], dim=1)
        return self.readout(self.trunk(x)[:, -1])


# --- what makes it known ----------------------------------------------------------------------------------------


def behind_all(num_tokens):
    """Where the class token stands, whatever the length; a function of its own, as a patched model is pickled."""
    return (num_tokens - 1,)


@mtrkit.register_adapter
class SignalMambaAdapter(mtrkit.Adapter):
    name, summary = "signal_mamba", "SignalMamba of examples/own_family.py"
    marks = ("stem", "reader", "trunk", "readout")  # attributes that tell the family
    single_stream, call_argument = True, None  # blocks are called as x = block(x), with nothing beside x
    own_code_reads = ("widen", "smooth", "select", "step", "narrow")  # below, by weight: adapters on them are refused

    def blocks(self, model):
        return list(model.trunk)

    def mixer(self, block):
        return block.scanner

    def run_mixer(self, mixer, hidden, call):
        smooth, step = mixer.smooth, mixer.step
        scan = (mixer.select.weight, step.weight, step.bias, mixer.log_decay, mixer.skip)
        directions = (DirectionWeights(smooth.weight, smooth.bias, *scan),)
        weights = MixerWeights(mixer.widen.weight, None, mixer.narrow.weight, None, directions)
        return mixer_forward(hidden, weights, call.reads, call.gaps)

    def run_block(self, block, tokens, call):
        return tokens + block.scanner(block.scale(tokens), call)  # the patch has made the mixer take the call

    def special_at(self, model):
        return behind_all

    def shape(self, model, input_size):
        mixer, patches = model.trunk[0].scanner, input_size[1] // model.stem.stride[0]
        sizes = {"dim": mixer.widen.in_features, "inner": mixer.narrow.in_features, "state": mixer.log_decay.shape[1]}
        sizes |= {"dt_rank": mixer.step.in_features, "conv": mixer.smooth.kernel_size[0], "directions": 1}
        sizes |= {"depth": len(model.trunk), "tokens": patches + 1, "special": 1, "patches": patches}
        heads = {"patch_macs": model.stem.weight.numel(), "head_macs": model.readout.weight.numel()}
        return MambaShape(**sizes, **heads)

    def input_size(self, model):
        return (model.stem.in_channels, model.length)


# --- end to end -------------------------------------------------------------------------------------------------


def waves(count, length=512):
    """Noise with one short wave in it, of one of four frequencies, somewhere: (signals, labels)."""
    labels = torch.randint(4, (count,))
    start = torch.randint(length // 2, (count, 1))
    times = torch.arange(length) - start
    inside = (times >= 0) & (times < length // 4)
    signals = inside * torch.sin(times * (0.2 + 0.3 * labels[:, None])) + 0.5 * torch.randn(count, length)
    return signals[:, None], labels


def train(model, steps):
    """Some steps of AdamW, so that there is an accuracy to lose."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for _ in range(steps):
        signals, labels = waves(32)
        optimizer.zero_grad()
        F.cross_entropy(model(signals), labels).backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def report(name, model, signals, labels):
    """Print accuracy and time, and return the logits."""
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        logits = model(signals)
        taken.append(time.perf_counter() - begin)
    accuracy = 100 * (logits.argmax(dim=1) == labels).float().mean().item()
    print(f"{name:14}{accuracy:8.1f} %{1000 * min(taken):9.1f} ms{mtrkit.count_flops(model).gflops:9.4f} GFLOPs")
    return logits


torch.manual_seed(0)
model = train(SignalMamba(), steps=140)
signals, labels = waves(256)

mixer, tokens = model.trunk[0].scanner, torch.randn(2, 9, 32)  # the one check an adapter needs: it runs the mixer
torch.testing.assert_close(SignalMambaAdapter().run_mixer(mixer, tokens, MixerCall())[0], mixer(tokens))

dense = report("dense", model, signals, labels)
for method in ("mtr", "tome", "rmeeto"):
    mtrkit.apply_reduction(model, method, ratio=0.3)
    report(f"{method} 0.3", model, signals, labels)
print("\n", mtrkit.reduction_info(model), "\n", sep="")

mtrkit.remove_reduction(model)
with torch.inference_mode():
    assert torch.equal(model(signals), dense)
print("After remove_reduction the logits are the same as before, bit for bit.")
