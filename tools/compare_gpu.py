#!/usr/bin/env python3
"""PyTorch at the shapes of `esker bench gpu`, on the same card: products, attention, and a compiled step of 124M.

    python3 tools/compare_gpu.py --out DIR

Needs torch with CUDA and nothing else; without, it says so and ends with 3. `esker bench gpu` runs it by itself. Writes DIR/torch.json; times are medians by CUDA events, of 20 runs after 5, on
normal random numbers (zeros let a card run faster than it can on numbers).
"""

import argparse
import json
import pathlib
import statistics
import sys

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as e:
    print(f"torch is missing: {e}")
    sys.exit(3)
if not torch.cuda.is_available():
    print("torch sees no CUDA card")
    sys.exit(3)


def median_ms(f, runs=20, warm=5):
    for _ in range(warm):
        f()
    times = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        f()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def copy_rate():
    a = torch.randn(1 << 28, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / median_ms(lambda: b.copy_(a)) / 1e6


def products():
    for m, n, k in [(8192, 8192, 8192), (4096, 4096, 4096), (1024, 768, 768), (1024, 2048, 768), (1024, 768, 2048)]:
        a, b = (torch.randn(*s, device="cuda", dtype=torch.bfloat16) for s in ((m, k), (n, k)))
        ms = median_ms(lambda: a @ b.t())
        yield {"what": "matmul nt bf16", "m": m, "n": n, "k": k, "ms": ms, "tflop_per_s": 2e-9 * m * n * k / ms}


def attention():
    for name, backend in [("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)]:
        for batch, seq, heads, dim in [(1, 4096, 12, 64), (4, 4096, 32, 128), (1, 1024, 12, 64)]:
            shape = (batch, heads, seq, dim)
            q, k, v = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
            do = torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
            row = {"what": f"sdpa {name} causal bf16", "batch": batch, "seq": seq, "heads": heads, "head_dim": dim}
            try:
                with sdpa_kernel(backend):
                    forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
                    ms = median_ms(forward)
                    o = forward()
                    back = median_ms(lambda: torch.autograd.grad(o, (q, k, v), do, retain_graph=True))
            except RuntimeError as e:
                yield row | {"error": str(e).splitlines()[0]}
                continue
            flops = 2 * batch * heads * seq * seq * dim
            rates = {"forward_tflop_per_s": 1e-9 * flops / ms, "backward_tflop_per_s": 2.5e-9 * flops / back}
            yield row | {"forward_ms": ms, "backward_ms": back} | rates


class Block(torch.nn.Module):
    def __init__(self, c, heads, ffn):
        super().__init__()
        line = lambda i, o: torch.nn.Linear(i, o, bias=False)
        self.heads, self.n1, self.n2 = heads, torch.nn.RMSNorm(c), torch.nn.RMSNorm(c)
        self.q, self.k, self.v, self.o = (line(c, c) for _ in range(4))
        self.gate, self.up, self.down = line(c, ffn), line(c, ffn), line(ffn, c)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        n = self.n1(x)
        q, k, v = (f(n).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        turn = lambda y: y * cos + torch.cat((-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]), -1) * sin
        o = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + self.o(o.transpose(1, 2).reshape(b, t, c))
        n = self.n2(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Llama(torch.nn.Module):
    def __init__(self, vocab, seq, c, layers, heads, ffn):
        super().__init__()
        self.embed = torch.nn.Embedding(vocab, c)
        self.blocks = torch.nn.ModuleList(Block(c, heads, ffn) for _ in range(layers))
        self.norm = torch.nn.RMSNorm(c)
        d = c // heads
        angle = torch.outer(torch.arange(seq), 10000.0 ** (-torch.arange(0, d, 2) / d)).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids, targets):
        x = self.embed(ids)
        cos, sin = self.cos.to(torch.bfloat16), self.sin.to(torch.bfloat16)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.cross_entropy((self.norm(x) @ self.embed.weight.t()).flatten(0, 1).float(), targets.flatten())


def steps():
    vocab, seq = 50257, 1024
    for rows in (4, 16):
        model = Llama(vocab, seq, 768, 12, 12, 2048).cuda()
        optim = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        run = torch.compile(model)
        ids, targets = (torch.randint(vocab, (rows, seq), device="cuda") for _ in range(2))

        def step():
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = run(ids, targets)
            loss.backward()
            optim.step()
            optim.zero_grad(set_to_none=True)

        ms = median_ms(step)
        yield {"what": "compiled step 124M bf16", "rows": rows, "seq": seq, "ms": ms, "tokens_per_s": rows * seq / ms * 1e3}


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."))
    args = args.parse_args()
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    rows = [{"what": "copy", "gb_per_s": copy_rate()}, *products(), *attention(), *steps()]
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": torch.cuda.get_device_name(), "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "torch.json").write_text(json.dumps(found, indent=1))
    for row in rows:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
