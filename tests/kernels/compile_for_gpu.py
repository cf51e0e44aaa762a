"""Run by test_gpu_compile.py: compiles what a fused layer would start on a GPU, without one.

The arguments are a compute capability, a type, strides with sides of maps (``1x40,2x40``) and operators. The layer's
passes run on tensors without data; instead of being started each program is compiled with the types and constants of
its launch. Prints a line of JSON for each.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hitdet_nni.kernels.gpu import depthwise, mixture, moments, normalization
from hitdet_nni.nas.fused import FusedMixture
from hitdet_nni.operators.registry import build_operator

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
WARP = 32
OPTIONS = ("num_warps",)
CHANNELS = 64


def type_name(argument):
    if isinstance(argument, torch.Tensor):
        return f"*{TYPES[argument.dtype]}"
    return "i32" if isinstance(argument, int) else "fp32"


def resources(cubin):
    """Registers of a thread, and bytes of its stack, where registers are spilled and arrays lie that have none."""
    tool = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK")]


def main():
    capability, kind, sizes, *names = sys.argv[1:]
    kind = {name: dtype for dtype, name in TYPES.items()}[kind]
    target = GPUTarget("cuda", int(capability), WARP)
    compiled = {}

    def start(program, grid, /, *arguments, **constants):
        options = {name: constants.pop(name) for name in OPTIONS if name in constants}
        given = dict(zip(program.arg_names, arguments, strict=False))
        signature = {name: type_name(argument) for name, argument in given.items()}
        signature |= dict.fromkeys(constants, "constexpr")
        name = f"{program.__module__.rpartition('.')[2]}.{program.__name__}"
        key = json.dumps([name, signature, {k: str(v) for k, v in constants.items()}, options])
        if key not in compiled:
            assert list(signature) == program.arg_names, (list(signature), program.arg_names)
            aligned = [["tt.divisibility", 16]]  # as torch allocates
            pointers = [place for place, kind in enumerate(signature.values()) if kind.startswith("*")]
            source = ASTSource(program, signature, constexprs=constants, attrs={(p,): aligned for p in pointers})
            made = triton.compile(source, target=target, options=options)
            registers, stack = resources(made.asm["cubin"])
            compiled[key] = {"program": name, "registers": registers, "stack": stack, **constants}
            sys.stdout.write(json.dumps(compiled[key], default=str) + "\n")

    for module in (depthwise, mixture, moments, normalization):
        module.start = start
    for size in sizes.split(","):
        stride, side = map(int, size.split("x"))
        modules = nn.ModuleDict({name: build_operator(name, CHANNELS, CHANNELS, stride) for name in names}).to("meta")
        layer = FusedMixture(dict(modules.items()))
        x = torch.empty(2, CHANNELS, side, side, dtype=kind, device="meta").to(memory_format=torch.channels_last)
        weights = torch.empty(len(names), device="meta")
        parameters = [p.detach() for u in layer.units for p in (u.conv.weight, u.norm.weight, u.norm.bias)]
        passes = layer.passes(x, kind, layer.policy)
        with torch.no_grad():
            output, tape = passes.forward(x, weights, parameters)
            needs = (True, True, *(True for _ in parameters))
            passes.backward(tape, x, weights, parameters, needs, torch.empty_like(output))


if __name__ == "__main__":
    main()
