#!/usr/bin/env python3
"""A training step of PyTorch, to hold `osprey bench train` against: the same models, sizes and FLOP formula.

Forward, backward, gradient norm and AdamW of one micro batch, under torch.compile, bf16 autocast over fp32 weights, causal
scaled_dot_product_attention. Prints one JSON object a model; rates are medians, and a big bf16 GEMM is timed in turn with the
steps, so that `fraction` compares with what the same GPU did at the same time.

    python3 tests/bench/torch_step.py                         both models
    python3 tests/bench/torch_step.py --model 1b4 --micro-batch 4
    python3 tests/bench/torch_step.py --model tiny --device cpu --steps 2 --no-compile      does the script run at all
"""

import argparse
import dataclasses
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass
class Size:
    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int
    sequence: int
    micro_batch: int
    tied: bool = False  # the head is the embedding
    outlier_safe: bool = False  # norms of one scale, embedding projections: recipes/pretrain/osp_1b4.yaml


SIZES = {
    "124m": Size(12, 768, 12, 2048, 50304, 2048, 16, tied=True),  # as large as GPT-2
    "1b4": Size(24, 2048, 16, 5504, 49152, 2048, 8, outlier_safe=True),
    "tiny": Size(2, 64, 2, 128, 256, 32, 2, outlier_safe=True),
}


class Norm(nn.Module):
    def __init__(self, scales):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(scales))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], eps=1e-6) * self.weight


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def rotate(x, cos, sin):
    """RoPE on halves: x is (B, H, T, D), cos and sin are (T, D / 2)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.heads = s.heads
        scales = 1 if s.outlier_safe else s.width
        self.norm1, self.norm2 = Norm(scales), Norm(scales)
        self.qkv, self.o = linear(s.width, 3 * s.width), linear(s.width, s.width)
        self.gate_up, self.down = linear(s.width, 2 * s.ffn), linear(s.ffn, s.width)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.o(o.transpose(1, 2).reshape(b, t, c))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.size = s
        self.embed = nn.Embedding(s.vocabulary, s.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.projections = nn.ModuleList(linear(s.width, s.width) for _ in range(2 if s.outlier_safe else 0))
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = Norm(1 if s.outlier_safe else s.width)
        self.head = linear(s.width, s.vocabulary)
        if s.tied:
            self.head.weight = self.embed.weight
        half = s.width // s.heads // 2
        angles = torch.outer(torch.arange(s.sequence), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        if self.projections:
            x = self.projections[0](x)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = self.norm(x)
        if self.projections:
            x = self.projections[1](x)
        return F.cross_entropy(self.head(x).flatten(0, 1).float(), targets.flatten())

    def flops_per_token(self):
        """As Osprey counts: 6 N with the head and without the embedding, and 6 L T C for causal attention."""
        s = self.size
        weights = s.layers * (4 * s.width**2 + 3 * s.width * s.ffn) + s.width * s.vocabulary
        weights += len(self.projections) * s.width**2
        return 6 * weights + 6 * s.layers * s.sequence * s.width


class Gemm:
    """A bf16 product so large that it shows what the device can do."""

    def __init__(self, device):
        self.side = 8192 if device == "cuda" else 512
        self.a, self.b = (torch.randn(self.side, self.side, device=device, dtype=torch.bfloat16) for _ in range(2))
        self.rate()  # the first call chooses a kernel

    def rate(self):
        return 2 * self.side**3 / seconds(lambda: self.a @ self.b)


def seconds(work):
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def measure(name, args):
    size = dataclasses.replace(SIZES[name])
    size.micro_batch = args.micro_batch or size.micro_batch
    size.sequence = args.sequence or size.sequence
    torch.manual_seed(1)
    model = Llama(size).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=args.device == "cuda")
    tokens, targets = torch.randint(0, size.vocabulary, (2, size.micro_batch, size.sequence), device=args.device)
    forward = torch.compile(model) if args.compile else model

    def step():
        with torch.autocast(args.device, dtype=torch.bfloat16):
            loss = forward(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    gemm = Gemm(args.device)
    compile_s = seconds(step)
    for _ in range(3):
        step()
    times, rates = [], []
    for _ in range(args.steps):
        rates.append(gemm.rate())
        times.append(seconds(step))
    step_s, gemm_rate = statistics.median(times), statistics.median(rates)
    count = size.micro_batch * size.sequence
    flops = model.flops_per_token() * count / step_s
    gpu = args.device == "cuda"
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "micro_batch": size.micro_batch,
        "sequence": size.sequence,
        "step_ms": round(step_s * 1e3, 3),
        "tokens_per_second": round(count / step_s),
        "tflops_per_second": round(flops / 1e12, 2),
        "gemm_tflops_per_second": round(gemm_rate / 1e12, 2),
        "fraction": round(flops / gemm_rate, 4),
        "first_step_s": round(compile_s, 1),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, action="append", help="may be given several times; 124m and 1b4 by default")
    parser.add_argument("--micro-batch", type=int, help="sequences in a step")
    parser.add_argument("--sequence", type=int, help="tokens in a sequence")
    parser.add_argument("--steps", type=int, default=15, help="measured, after four that warm up")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    for name in args.model or ("124m", "1b4"):
        print(json.dumps(measure(name, args)), flush=True)
        if args.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
