"""A command begins at once: it loads torch, and little else that it does not need for this."""

from tests.helpers.running import run_python

PROBE = """
import sys
import numpy, torch

before = set(sys.modules)


def added():
    "Modules that are neither Python's, torch's nor ours, and how many modules of any kind."
    new = {name for name in set(sys.modules) - before if name.partition(".")[0] not in ("mtrkit", "__mp_main__")}
    tops = {name.partition(".")[0] for name in new}
    return {top for top in tops if top not in sys.stdlib_module_names}, new


from mtrkit.cli.main import COMMANDS, main

for name, (module, _) in COMMANDS.items():
    __import__(f"mtrkit.cli.{module}")
    try:
        main([name, "--help"])
    except SystemExit:
        pass
assert main(["list"]) == main(["info", "vim_micro_patch4_32", "--checkpoint", "pretrained"]) == 0
packages, new = added()
assert packages <= {"rich", "markdown_it", "mdurl", "pygments", "PIL", "safetensors", "filelock", "torch"}, packages
heavy = {name for name in new if name.startswith(("torch._dynamo", "torch._inductor", "torch.onnx", "torch.export"))}
assert not heavy, sorted(heavy)[:5]
assert len(new) < 250, len(new)
assert not {"asyncio", "unittest", "xmlrpc", "http.server"} & new

import timm

assert timm.is_model("vim_tiny_patch16_224")  # our models are there as soon as timm is
"""


def test_commands_load_little():
    done = run_python("-c", PROBE)
    assert done.returncode == 0, done.stderr
