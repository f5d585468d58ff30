#!/usr/bin/env python3
"""Writes golden.json: matrices after steps of APOLLO, algorithm 1 of 2412.05270 in double precision with numpy, including the
random numbers (Philox4x32-10, Box and Muller) that projections are made of.

    python3 golden.py > golden.json        (numpy 1.26)

Not run by the tests."""
import json
import sys

import numpy as np

SEED, STEPS = 11, 7
LEARNING_RATE, DECAY, BETA1, BETA2, EPS, GROWTH = 0.05, 0.1, 0.9, 0.99, 1e-8, 1.01
CLIPPING = [1, 1, 0.5, 1, 0.25, 1, 1]  # what gradients are multiplied by
SIZES = [1e-2, 3e-2, 1e-3, 5e-2, 2e-2, 1e-1, 1e-2]
CASES = [dict(name="layers.0.mlp.up.weight", out=9, **{"in": 5}, rank=3, refresh_every=3, scaling="channel", scale=1.0),
         dict(name="layers.1.mlp.down.weight", out=6, **{"in": 10}, rank=2, refresh_every=2, scaling="channel", scale=2.0),
         dict(name="layers.2.attn.q.weight", out=6, **{"in": 6}, rank=1, refresh_every=200, scaling="tensor", scale=0.5),
         dict(name="layers.3.mlp.down.weight", out=4, **{"in": 7}, rank=1, refresh_every=3, scaling="tensor", scale=1.0)]


def fnv1a(text):
    value = 0xcbf29ce484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return value


def philox(seed, stream, index):
    counter = [index % 2**32, index >> 32, stream % 2**32, stream >> 32]
    key = [seed % 2**32, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b % 2**32, (a >> 32) ^ counter[3] ^ key[1], a % 2**32]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def projection(name, draw, rank, side):
    stream = fnv1a(name + " projection")
    values = []
    for i in range(rank * side):
        u, w = ((bits + 0.5) / 2**32 for bits in philox(SEED, stream, draw * rank * side + i)[:2])
        values.append(np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * w))
    return np.array(values).reshape(rank, side) / np.sqrt(rank)


def run(case):
    m, n, rank = case["out"], case["in"], case["rank"]
    i = np.arange(m * n).reshape(m, n)
    w = 0.5 * np.sin(i + 1.0)
    left = m < n
    first = second = np.zeros((rank, n) if left else (m, rank))
    previous, limits, after = None, [], []
    for t in range(STEPS):
        g = CLIPPING[t] * SIZES[t] * np.cos(0.7 * (i + 1) * (t + 1))
        p = projection(case["name"], t // case["refresh_every"], rank, m if left else n)
        r = p @ g if left else g @ p.T
        first = BETA1 * first + (1 - BETA1) * r
        second = BETA2 * second + (1 - BETA2) * r**2
        direction = (first / (1 - BETA1**(t + 1))) / (np.sqrt(second / (1 - BETA2**(t + 1))) + EPS)
        if case["scaling"] == "tensor":
            factor = np.linalg.norm(direction) / np.linalg.norm(r)
        else:
            axis = 0 if left else 1
            factor = np.linalg.norm(direction, axis=axis, keepdims=True) / np.linalg.norm(r, axis=axis, keepdims=True)
        scaled = g * factor
        norm = np.linalg.norm(scaled)
        if previous is not None and norm / previous > GROWTH:
            scaled *= GROWTH * previous / norm
            limits.append(t)
        previous = np.linalg.norm(scaled)
        w = w - LEARNING_RATE * (case["scale"] * scaled + DECAY * w)
        after.append([float(f"{x:.9g}") for x in w.flatten()])
    print(case["name"], "limited in steps", limits, file=sys.stderr)
    return dict(case, after=after)


print(json.dumps({"seed": SEED, "learning_rate": LEARNING_RATE, "weight_decay": DECAY, "betas": [BETA1, BETA2], "eps": EPS,
                  "grad_scale": CLIPPING, "sizes": SIZES, "cases": [run(case) for case in CASES]},
                 separators=(",", ":")))
