"""peft_test.py BASE FOLDER NAME:TOLERANCE ...: FOLDER/NAME are adapters for BASE, FOLDER/NAME-merged is the model with them.
Called by peft.sh."""
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, folder = sys.argv[1:3]
ids = torch.tensor([[72, 101, 108, 108, 111, 32, 111, 115, 112, 114, 101, 121, 33]])


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32, attn_implementation="eager")


def logits(model):
    with torch.no_grad():
        return model.eval()(ids).logits


def difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


plain = logits(load(base))
for argument in sys.argv[3:]:
    name, tolerance = argument.split(":")
    merged = logits(load(f"{folder}/{name}-merged"))
    adapted = logits(PeftModel.from_pretrained(load(base), f"{folder}/{name}"))
    error, moved = difference(adapted, merged), difference(plain, merged)
    print(f"{name:10} relative error {error:.1e}, where the base differs by {moved:.1e}")
    if error > float(tolerance) or moved < 5 * float(tolerance):
        sys.exit(f"FAILED: {name}: {error} is more than {tolerance}, or the base is too near ({moved})")
