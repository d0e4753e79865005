"""ONNX files in the real onnxruntime: every method, batches of any size, and what the files say of themselves."""

import pytest
import torch

import mtrkit
from tests.export.models import IMAGES, answer, family, vim
from tests.test_matrix import IMAGES as LARGE
from tests.test_matrix import has_what_it_reads

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

VIM = [method for method in mtrkit.list_methods() if has_what_it_reads(method, "vim")]
OTHERS = ["vim_mean", "vim_mambar", "timm_vit"]


def run(path, images):
    """The file's answer, in a session of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": images.numpy()})[0])


def check(model, path, images=IMAGES, atol=1e-4):
    """Export, and compare for a batch of one, of as many as were exported, and of more."""
    mtrkit.export(model, path, images[:2])
    for batch in (images[:1], images[:2], torch.cat([images, images.flip(3)])):
        torch.testing.assert_close(run(path, batch), answer(model, batch), rtol=0, atol=atol)


@pytest.mark.parametrize("method", [None, *VIM])
def test_every_method(method, tmp_path):
    check(vim(method), tmp_path / "model.onnx")


@pytest.mark.parametrize("name", OTHERS)
def test_other_families(name, tmp_path):
    method = "mtr" if has_what_it_reads("mtr", name) else "tome"
    model = family(name, method)
    check(model, tmp_path / "model.onnx", LARGE, atol=1e-4 * max(1.0, float(answer(model, LARGE).abs().max())))


OPTIONS = {
    "l1": ("mtr", {"similarity": "l1"}),
    "l2": ("mtr", {"similarity": "l2"}),
    "gaps": ("hsa", {"state": "decay"}),
    "lengths": ("rmeeto", {"lengths": "positions", "ratio": 0.1}),
    "kth": ("rmeeto", {"kth": 2}),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, tmp_path):
    method, given = OPTIONS[options]
    check(vim(method, **given), tmp_path / "model.onnx")


def test_only_standard_operators_and_the_opset_asked_for(tmp_path):
    mtrkit.export(vim("mtr"), tmp_path / "model.onnx", IMAGES, opset=20)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20}
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert [node.op_type for node in model.graph.node].count("Scan") == 4  # two blocks of two directions
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_what_the_file_says_of_itself(tmp_path):
    model = vim("mtr")
    done = mtrkit.export(model, tmp_path / "model.onnx", IMAGES)
    said = {entry.key: entry.value for entry in onnx.load(done.path).metadata_props}
    info = mtrkit.reduction_info(model)
    assert said["mtrkit"] == mtrkit.__version__ and said["opset"] == "18" and said["input_size"] == "3x16x16"
    assert said["method"] == "mtr" and said["ratio"] == "0.15"
    assert float(said["ratio_reached"]) == pytest.approx(info.ratio_reached, abs=1e-6)
    assert said["tokens"] == " ".join(map(str, info.tokens))
    assert said == done.metadata and done.error < 1e-4 and done.format == "onnx"


def test_the_graph_does_not_grow_with_the_sequence(tmp_path):
    counts = []
    for size in (16, 32):
        model = mtrkit.VisionMamba(img_size=size, patch_size=4, embed_dim=16, depth=1, num_classes=5).eval()
        mtrkit.export(model, tmp_path / "model.onnx", torch.randn(2, 3, size, size))
        counts.append(len(onnx.load(tmp_path / "model.onnx").graph.node))
    assert counts[0] == counts[1]


def test_the_model_stays_as_it_is(tmp_path):
    model = vim("mtr")
    before = answer(model)
    mtrkit.export(model, tmp_path / "model.onnx", IMAGES)
    assert torch.equal(answer(model), before)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
