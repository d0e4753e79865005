"""Language models of transformers, whose own code takes a text token by token, export as one scan."""

import pytest
import torch
from torch import nn

import mtrkit
from mtrkit.errors import ExportError

transformers = pytest.importorskip("transformers")
TEXTS = torch.randint(0, 40, (3, 100), generator=torch.Generator().manual_seed(2))
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "state_size": 4}
CONFIGS = {"mamba": "Mamba", "falcon": "FalconMamba"}


def build(family="mamba", method=None, **options):
    torch.manual_seed(1)
    name = CONFIGS[family]
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SIZES)).eval()
    for block in model.backbone.layers:
        nn.init.normal_(block.mixer.x_proj.weight, std=0.3)  # or tokens hardly mix
    if method:
        mtrkit.apply_reduction(model, method, input_size=(100,), **({"ratio": 0.3} | options))
    return model


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("method", [None, "hsa", "runs"])
def test_long_texts(method, family, format, tmp_path):
    model = build(family, method)
    mixers = [dict(vars(block.mixer)) for block in model.backbone.layers]
    before = model(TEXTS).logits
    done = mtrkit.export(model, tmp_path / f"model.{format}", TEXTS)
    assert done.error < 1e-4
    assert all(set(vars(b.mixer)) == set(own) for b, own in zip(model.backbone.layers, mixers, strict=True))
    assert torch.equal(model(TEXTS).logits, before)
    if method:
        assert int(done.metadata["tokens"].split()[-1]) < 100


def test_size_does_not_grow_with_the_text(tmp_path):
    onnx = pytest.importorskip("onnx")
    nodes = []
    for length in (20, 100):
        mtrkit.export(build(), tmp_path / "model.onnx", TEXTS[:, :length])
        nodes.append(len(onnx.load(tmp_path / "model.onnx").graph.node))
    assert nodes[0] == nodes[1]


class Masked(nn.Module):
    """A model for texts with padding."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, texts, mask):
        return self.model(texts, attention_mask=mask)


def test_masks(tmp_path):
    model, mask = Masked(build()).eval(), torch.ones_like(TEXTS)
    mask[:, :5] = 0
    mtrkit.export(model, tmp_path / "short.pt2", (TEXTS[:, :12], mask[:, :12]))
    with pytest.raises(ExportError, match="a mask beside texts of 100 tokens"):
        mtrkit.export(model, tmp_path / "long.pt2", (TEXTS, mask))
    assert not (tmp_path / "long.pt2").exists()
    assert "forward" not in vars(model.model.backbone.layers[0].mixer)
