"""Products of matrices by OpenBLAS, in a process of their own: torch keeps what is put in place."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from tasks.lineage import compute
from tests.tasks.lineage.test_compute import PINNED

PROGRAM = """
import hashlib, json, sys
import torch
from tasks.lineage import compute, products
from tests.tasks.lineage.test_compute import PINNED

threads = int(sys.argv[1])
settings = PINNED.model_copy(update={"threads": threads})
torch.manual_seed(3)
a, b, bias = torch.randn(130, 70), torch.randn(70, 516), torch.randn(516)
wide = torch.randn(300, 400)
cases = {
    "plain": (a, b),
    "transposed left": (torch.randn(70, 130).t(), b),
    "transposed right": (a, torch.randn(516, 70).t()),
    "both transposed": (torch.randn(70, 130).t(), torch.randn(516, 70).t()),
    "every other column": (a[:, ::2], b[:35]),
    "a window": (wide[20:150, 30:100], b),
    "many rows": (torch.randn(3000, 70), b),
    "sixteen rows": (a[:16], b),
    "fifteen rows": (a[:15], b),
    "one row": (a[:1], b),
    "one column": (a, b[:, :1]),
    "no rows": (a[:0], b),
    "nothing to add up": (a[:, :0], b[:0]),
    "float64": (a.double(), b.double()),
    "large": (torch.randn(520, 256), torch.randn(256, 1030)),
}
before = {name: left.double() @ right.double() for name, (left, right) in cases.items()}
assert not products.installed()
compute.seed(settings)
assert products.installed()
compute.seed(settings)  # again, as a stage that calls another part may

found = {}
for name, (left, right) in cases.items():
    product = left @ right
    assert product.dtype == left.dtype and product.shape == before[name].shape, name
    assert torch.allclose(product.double(), before[name], atol=1e-4), name
    assert torch.equal(product, left @ right), name
    found[name] = hashlib.sha256(product.numpy().tobytes()).hexdigest()

for beta, alpha in ((1, 1), (0.5, 2), (0, 1)):
    for added in (bias, torch.randn(130, 516), bias[:1]):
        sum_ = torch.addmm(added, a, b, beta=beta, alpha=alpha)
        assert torch.allclose(sum_.double(), beta * added.double() + alpha * before["plain"], atol=1e-4)
kept = bias.clone()
linear = torch.nn.functional.linear(a, b.t(), bias)
assert torch.equal(bias, kept)  # it is read, not written over
assert torch.allclose(linear.double(), before["plain"] + bias.double(), atol=1e-4)
assert torch.addmm(bias.double(), a.double(), b.double()).dtype == torch.float64

total = torch.randn(130, 516)
expected = 0.5 * total.double() + 2 * before["plain"]
assert total.addmm_(a, b, beta=0.5, alpha=2) is total
assert torch.allclose(total.double(), expected, atol=1e-4)
columns = torch.randn(516, 130)
expected = columns.t().double() + before["plain"]
columns.t().addmm_(a, b)  # into what is not contiguous
assert torch.allclose(columns.t().double(), expected, atol=1e-4)

weight = torch.randn(64, 70, requires_grad=True)
torch.nn.functional.linear(a, weight).square().sum().backward()
by_hand = 2 * (a.double() @ weight.detach().double().t()).t() @ a.double()
assert torch.allclose(weight.grad.double(), by_hand, rtol=1e-4, atol=1e-2)

nothing = torch.full((130, 70), float("nan"))
assert (nothing @ b).isnan().all()
for wrong, said in (
    (lambda: torch.mm(a, a), "130x70"),
    (lambda: torch.mm(a, b[0]), "must be a matrix"),
    (lambda: torch.mm(a[None], b), "must be a matrix"),
    (lambda: torch.addmm(bias[:5], a, b), "expanded size"),
    (lambda: total.addmm_(a, a), "130x70"),
    (lambda: products.install(threads + 1), f"not by {threads + 1}"),
):
    try:
        wrong()
    except RuntimeError as error:
        assert said in str(error), error
    else:
        raise AssertionError(f"no error says {said!r}")
print(json.dumps(found))
"""


pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere nothing is put in place"
)


def run(program: str, threads: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = PINNED.model_copy(update={"threads": threads})
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(threads)],
        env={**os.environ, **compute.environment(settings), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def products_of(threads: int) -> dict[str, Any]:
    done = run(PROGRAM, threads)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_products_are_right_and_the_same_each_time() -> None:
    assert products_of(2) == products_of(2)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_any_number_of_threads_multiplies(threads: int) -> None:
    products_of(threads)


def test_a_signal_frees_no_memory_that_a_thread_writes_into() -> None:
    done = run("""
import signal, threading, time
import torch
from tasks.lineage import products

products.install(2)
sgemm = products._installed.sgemm

def late(*arguments):
    if threading.current_thread() is not threading.main_thread():
        time.sleep(1)  # until after the exception
    sgemm(*arguments)

def stop(*_):
    raise KeyboardInterrupt

products._installed.sgemm = late
signal.signal(signal.SIGALRM, stop)
left, right = torch.randn(3000, 100), torch.randn(100, 9000)  # the result is given back when freed
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    left @ right
except KeyboardInterrupt:
    print("stopped")
time.sleep(1)
""")
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr


def test_a_forked_child_multiplies() -> None:
    done = run("""
import os
import torch
from tasks.lineage import products

products.install(2)
left, right = torch.randn(400, 300), torch.randn(300, 400)
product = left @ right
assert len(products._installed.others._threads) == 1  # there is a thread to lose
child = os.fork()
if not child:
    os._exit(0 if torch.equal(left @ right, product) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""")
    assert done.returncode == 0, done.stderr


def test_what_multiplies_while_python_ends_does() -> None:
    done = run("""
import atexit
import torch
from tasks.lineage import products

products.install(2)
left, right = torch.randn(400, 300), torch.randn(300, 400)
product = left @ right
atexit.register(lambda: print(torch.equal(left @ right, product)))
""")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_another_core_of_openblas_is_refused() -> None:
    program = "from tasks.lineage import products; products.install(2)"
    done = run(program, OPENBLAS_CORETYPE="Sandybridge")
    assert done.returncode
    assert "start the process with OPENBLAS_CORETYPE=Haswell" in done.stderr
