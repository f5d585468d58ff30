"""peft_test.py BASE FOLDER NAME:TOLERANCE ...: FOLDER/NAME are adapters for BASE, FOLDER/NAME-merged is the model with them.
peft_test.py BASE DIR: writes random adapters for BASE into DIR (DoRA, rank 4, alpha 8). Called by peft.sh."""
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
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


if len(sys.argv) == 3:
    torch.manual_seed(1)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(load(base), LoraConfig(r=4, lora_alpha=8, target_modules=targets, use_dora=True,
                                                  task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        if "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    sys.exit()

plain = logits(load(base))
for argument in sys.argv[3:]:
    name, tolerance = argument.split(":")
    merged = logits(load(f"{folder}/{name}-merged"))
    adapted = logits(PeftModel.from_pretrained(load(base), f"{folder}/{name}"))
    error, moved = difference(adapted, merged), difference(plain, merged)
    print(f"{name:10} relative error {error:.1e}, where the base differs by {moved:.1e}")
    if error > float(tolerance) or moved < 5 * float(tolerance):
        sys.exit(f"FAILED: {name}: {error} is more than {tolerance}, or the base is too near ({moved})")
