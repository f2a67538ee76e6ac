"""lida's own attention on the CPU: the equation's values and gradients, in bf16, on each kind of registers that are here."""

from functools import cache
from platform import machine

import pytest
import torch
import torch.nn.functional as F
from conftest import relative

import lida
from lida.kernels import flash_cpu, use_attention
from lida.nn.layers import attention

KIND = (torch.bfloat16, torch.device("cpu"))
compiled_for = cache(flash_cpu.compiled_for)
on_each = pytest.mark.usefixtures("architecture")


@pytest.fixture(params=flash_cpu.ARCHITECTURES.items(), ids="-".join)
def architecture(request, monkeypatch):
    """Let the kernel be one that was compiled for this architecture; skip where the CPU is none."""
    word, name = request.param
    if not (flash_cpu.cpu_has(word) and flash_cpu.compiler()):
        pytest.skip(f"needs a CPU with {word} and a C++ compiler")
    monkeypatch.setattr(flash_cpu, "library", lambda: compiled_for(name))


@pytest.fixture
def uncompiled():
    """Let the kernel be looked for in this test, and again after it."""
    flash_cpu.library.cache_clear()
    yield
    flash_cpu.library.cache_clear()


def heads(*shape: int) -> torch.Tensor:
    """(B, heads, tokens, d) as a projection leaves them: of each token, the heads beside one another."""
    b, h, tokens, d = shape
    return torch.randn(b, tokens, h, d).bfloat16().transpose(1, 2).requires_grad_()


def assert_near_the_equation(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Values and gradients, beside float64: off by bf16's rounding of P, dS and the result, or no more than torch's kernel."""
    dout = torch.randn(q.shape).bfloat16()

    def found(out: torch.Tensor, at: tuple) -> list[torch.Tensor]:
        return [x.double() for x in (out, *torch.autograd.grad(out, at, dout.to(out.dtype)))]

    exact = tuple(x.detach().double().requires_grad_() for x in (q, k, v))
    equation = found(attention(*exact), exact)
    ours = found(flash_cpu.attention(q, k, v), (q, k, v))
    theirs = found(F.scaled_dot_product_attention(q, k, v), (q, k, v))
    for a, b, c in zip(ours, theirs, equation):
        assert relative(a, c) <= max(2**-8, 1.1 * relative(b, c))


@on_each
@pytest.mark.parametrize(
    ("b", "h", "queries", "keys", "d"),
    [
        (1, 2, 1024, 1024, 40),  # SD1.5's heads, of 40, 80 and 160, at 256 px and less
        (2, 3, 256, 256, 80),
        (1, 2, 64, 64, 160),
        (2, 2, 144, 77, 28),  # lida-tiny's tokens and a prompt's: no multiples of a tile's sides
        (1, 2, 33, 17, 7),
        (1, 1, 300, 270, 21),  # more queries and keys than a block holds
        (1, 1, 1, 545, 21),
        (1, 1, 545, 1, 32),
    ],
)
def test_it_equals_the_equation(b, h, queries, keys, d):
    assert_near_the_equation(heads(b, h, queries, d), heads(b, h, keys, d), heads(b, h, keys, d))


@on_each
@pytest.mark.parametrize("score", [0.0, 477.0, -477.0])
def test_it_takes_scores_of_any_size(score):
    """Where exp alone would be 0 or infinite, of the keys that are there or of the room beside them."""
    q, k, v = heads(1, 1, 32, 32), heads(1, 1, 65, 32), heads(1, 1, 65, 32)
    with torch.no_grad():
        q[..., 0], k[..., 0] = score * 32**0.5 / 9, 9
    assert_near_the_equation(q, k, v)


@on_each
def test_what_is_not_a_number_stays_so():
    q, k, v = (torch.randn(1, 1, n, 32).bfloat16() for n in (32, 64, 64))
    k[0, 0, 5, 3] = torch.nan
    assert flash_cpu.attention(q, k, v).isnan().all()


@on_each
def test_it_computes_the_same_on_any_number_of_threads():
    """To the bit; otherwise a run could not be resumed exactly."""
    inputs, threads = [heads(1, 3, 99, 40) for _ in range(3)], torch.get_num_threads()
    found = []
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        out = flash_cpu.attention(*inputs)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    torch.set_num_threads(threads)
    assert all(a.equal(b) for other in found[1:] for a, b in zip(found[0], other))


@on_each
def test_a_unet_on_it_predicts_the_same_up_to_bf16(sd):
    unet = sd.unet.bfloat16()
    inputs = torch.randn(1, 4, 16, 16).bfloat16(), torch.tensor([500]), torch.randn(1, 77, 48).bfloat16()
    with torch.no_grad():
        expected = unet(*inputs).float()
        use_attention(unet, "flash_cpu")
        found = unet(*inputs).float()
    assert not found.equal(expected)  # otherwise nothing ran on it
    assert relative(found, expected) <= 2**-5


@on_each
def test_a_float32_unet_has_the_kernel_under_autocast(sd):
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 77, 48)
    expected = sd.unet(*inputs)
    use_attention(sd.unet, "flash_cpu", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = sd.unet(*inputs).float()
    assert relative(found, expected) <= 2**-5


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (torch.ones(1, 2, 3, 8), "for bfloat16 on the CPU, not float32 on cpu"),
        (torch.ones(1, 2, 3, 4).bfloat16(), "do not fit"),
    ],
)
def test_it_takes_nothing_that_it_would_misread(k, message):
    q = torch.ones(1, 2, 5, 8).bfloat16()
    with pytest.raises(ValueError, match=message):
        flash_cpu.attention(q, k, k)


def test_it_is_refused_where_it_is_not(sd, monkeypatch, uncompiled):
    with pytest.raises(lida.InputError, match="is for bfloat16 on the CPU, not float32 on cpu"):
        use_attention(sd.unet, "flash_cpu")
    unet = sd.unet.bfloat16()
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(lida.InputError, match="needs Linux on a CPU with AMX or AVX512-BF16"):
        use_attention(unet, "flash_cpu")
    assert not flash_cpu.available(*KIND)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("compiler", lambda: None, "needs a C.. compiler; install g"),
        ("ARCHITECTURES", {"fpu": "none"}, r"cannot compile it \(.*none"),
    ],
)
@pytest.mark.skipif(flash_cpu.compiler() is None, reason="needs a C++ compiler")
def test_a_kernel_that_cannot_be_compiled_is_refused_with_what_the_compiler_said(name, value, message, monkeypatch, uncompiled):
    monkeypatch.setattr(flash_cpu, "cpu_has", lambda word: True)
    monkeypatch.setattr(flash_cpu, name, value)
    with pytest.raises(lida.InputError, match=message):
        flash_cpu.require(*KIND)
    with pytest.warns(UserWarning, match=message):
        assert not flash_cpu.available(*KIND)


@pytest.mark.skipif(flash_cpu.compiler() is None or machine() != "x86_64", reason="needs a C++ compiler for x86-64")
def test_a_worse_architecture_is_taken_where_the_best_cannot_be(monkeypatch, uncompiled):
    monkeypatch.setattr(flash_cpu, "cpu_has", lambda word: True)
    monkeypatch.setattr(flash_cpu, "ARCHITECTURES", {"amx_bf16": "none", "avx512_bf16": "cooperlake"})
    assert flash_cpu.available(*KIND)  # it is compiled and loaded, and not called
