#!/usr/bin/env python3
"""Writes hf_logits.json: what transformers computes for the models of hf_logits_test.cpp.

    OSPREY_GOLDEN_DIR=/tmp/g models_tests --gtest_filter='*LogitsAreThoseOfTransformers'
    python3 hf_logits.py /tmp/g > hf_logits.json        (torch 2.2.2, transformers 4.52.4)

Not run by the tests."""
import json
import sys

import torch
from transformers import AutoModelForCausalLM

IDS = [5, 63, 0, 17, 17, 42, 8, 29, 61, 33, 2, 50]
logits = {}
for name in ("osp", "qwen3", "tied", "mistral", "qwen3_window"):
    model, info = AutoModelForCausalLM.from_pretrained(
        f"{sys.argv[1]}/{name}", torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        out = model(torch.tensor([IDS])).logits[0]
    logits[name] = [round(v, 4) for v in out.flatten().tolist()]
    print(name, type(model).__name__, float(out.std()), file=sys.stderr)
print(json.dumps({"ids": IDS, "logits": logits}, separators=(",", ":")))
