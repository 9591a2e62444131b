"""Does the same work give the same bits on other processors?

    python benchmarks/processors.py [--quick]

Runs the operations of training, and three optimiser steps of a small Llama, on this processor and
on emulated Intel and AMD ones (Debian: apt-get install qemu-user), as `compute.instruction_set: avx2`
pins them and in MKL's own AVX2 mode, and compares hashes. Exits 1 when the pinned mode differs.
`--quick` leaves the Llama out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks.lineage.compute import environment, pinned, seed
from tasks.params import load

ROOT = Path(__file__).resolve().parents[1]
EMULATED = ("Haswell", "EPYC-Rome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="leave the Llama out")
    parser.add_argument("--probe", action="store_true", help="print this processor's hashes alone")
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(probe(arguments.quick)))
        return
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        sys.exit("qemu-x86_64 is not installed; on Debian: apt-get install qemu-user")

    pinned = environment(load(ROOT / "params.yaml").compute)
    held = True
    for name, mode in (("pinned", pinned), ("MKL's AVX2", pinned | {"MKL_CBWR": "AVX2"})):
        here = hashes([], mode, arguments.quick)
        for processor in EMULATED:
            there = hashes([qemu, "-cpu", processor], mode, arguments.quick)
            differing = sorted(key for key in here if here[key] != there[key])
            print(f"{name:<11} {processor:<10} differs in: {', '.join(differing) or 'nothing'}")
            held &= name != "pinned" or not differing
    print(
        f"claim: same-bits-on-other-processors measured {int(held)} target 1 {'ok' if held else 'short'}"
    )
    sys.exit(0 if held else 1)


def hashes(emulator: list[str], mode: dict[str, str], quick: bool) -> dict[str, str]:
    command = [*emulator, sys.executable, __file__, "--probe", *(["--quick"] if quick else [])]
    variables = {**os.environ, **mode, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def probe(quick: bool) -> dict[str, str]:
    """The hash of each operation's result; square roots are left out, see docs."""
    import torch

    from tasks.lineage import products

    compute = load(ROOT / "params.yaml").compute
    seed(compute)
    if pinned(compute) and not products.installed():
        sys.exit("the pinned mode does not multiply as the stages do")
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    found: dict[str, str] = {}
    for rows, inner, columns in (
        (160, 192, 512),
        (160, 384, 192),
        (70, 192, 2048),
        (1, 192, 2048),
        (512, 2048, 192),
    ):
        found[f"product {rows}x{inner}x{columns}"] = digest(
            draw(rows, inner) @ draw(inner, columns)
        )
    left, right = draw(160, 192), draw(192, 512)
    found["product and bias"] = digest(torch.addmm(draw(512), left, right))
    found["product added"] = digest(draw(160, 512).addmm_(left, right))
    queries, keys = draw(4, 3, 50, 64), draw(4, 3, 50, 64)
    found["batched product"] = digest(queries @ keys.transpose(-1, -2))
    attention = torch.nn.functional.scaled_dot_product_attention
    found["attention"] = digest(attention(queries, keys, keys, is_causal=True))
    x = draw(160, 512)
    for name in ("exp", "tanh", "sigmoid", "cos", "sum"):
        found[name] = digest(getattr(torch, name)(x))
    found["log"] = digest(torch.log(x.abs() + 1))
    found["rsqrt"] = digest(torch.rsqrt(x.abs() + 1))
    found["softmax"] = digest(torch.softmax(x, -1))
    weight = torch.nn.Parameter(draw(192, 512))
    weight.grad = draw(192, 512)
    torch.optim.AdamW([weight], lr=1e-3, fused=True).step()
    found["fused AdamW"] = digest(weight)
    if not quick:
        found["three steps of a Llama"] = trained(random)
    return found


def trained(random: Any) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=192,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=3,
        )
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    for _ in range(3):
        ids = torch.randint(0, 512, (4, 64), generator=random)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return digest(torch.cat([weight.flatten() for weight in model.parameters()]))


def digest(tensor: Any) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    main()
