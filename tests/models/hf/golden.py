#!/usr/bin/env python3
"""Makes tests/models/hf/golden: tiny models of each family with random weights, saved by transformers, and what
transformers computes for them: logits, mean loss and the norm of all its gradients.

    python3 golden.py FOLDER        (torch 2.2.2, transformers 4.52.4)

Not run by the tests."""
import json
import os
import sys

import torch
import torch.distributed._tensor
import torch.distributed.tensor
import transformers
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

# save_pretrained looks for DTensor where later versions of torch have it.
torch.distributed.tensor.DTensor = transformers.modeling_utils.DTensor = torch.distributed._tensor.DTensor

IDS = [5, 40, 0, 17, 17, 42, 8, 29, 11, 33, 2, 30, 1, 1, 46, 9, 22, 35, 3, 12]
COMMON = dict(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=1, head_dim=16, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
              attn_implementation="eager")
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=0.5)

# name: model, dtype of the file, size of a shard
MODELS = {
    "llama3": (LlamaForCausalLM(LlamaConfig(**COMMON, rope_theta=500.0, rope_scaling=LLAMA3)), "float32", "5GB"),
    "llama_bias": (LlamaForCausalLM(LlamaConfig(**COMMON, attention_bias=True, mlp_bias=True,
                                                rope_scaling=dict(type="linear", factor=3.0))), "float16", "5GB"),
    "mistral": (MistralForCausalLM(MistralConfig(**COMMON, sliding_window=5)), "bfloat16", "5GB"),
    "qwen2": (Qwen2ForCausalLM(Qwen2Config(**COMMON, tie_word_embeddings=True)), "float32", "8KB"),
    "qwen2_windows": (Qwen2ForCausalLM(Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=4,
                                                   max_window_layers=1)), "float32", "5GB"),
    "qwen3": (Qwen3ForCausalLM(Qwen3Config(**COMMON, rope_scaling=YARN, attention_bias=True)), "float32", "5GB"),
    "gpt2": (GPT2LMHeadModel(GPT2Config(vocab_size=48, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1,
                                        eos_token_id=2, attn_implementation="eager", attn_pdrop=0.0, embd_pdrop=0.0,
                                        resid_pdrop=0.0)), "float32", "5GB"),
    "opt": (OPTForCausalLM(OPTConfig(vocab_size=48, hidden_size=16, word_embed_proj_dim=16, ffn_dim=24,
                                     num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32, pad_token_id=47,
                                     dropout=0.0, attn_implementation="eager")), "float32", "5GB"),
}


def see_everything_in_first_layer(model):
    """transformers 4.52 gives all layers the window's mask; later ones, and Osprey, go by max_window_layers."""
    def full_mask(_, args, kwargs):
        n = len(IDS)
        kwargs["attention_mask"] = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]
        return args, kwargs
    model.model.layers[0].register_forward_pre_hook(full_mask, with_kwargs=True)


golden = {"ids": IDS}
for name, (model, dtype, shard) in MODELS.items():
    torch.manual_seed(7)
    for parameter_name, p in model.named_parameters():
        with torch.no_grad():
            p.normal_(0, 0.25)
            if p.dim() == 1 and parameter_name.endswith("weight"):  # of a norm
                p.add_(1)
    directory = os.path.join(sys.argv[1], name)
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=shard)
    # Loaded again: to() has rounded the rotary frequencies as well.
    model = type(model).from_pretrained(directory, torch_dtype=torch.float32, attn_implementation="eager").train()
    if name == "qwen2_windows":
        see_everything_in_first_layer(model)
    ids = torch.tensor([IDS])
    out = model(ids, labels=ids)
    out.loss.backward()
    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in model.parameters()))
    golden[name] = {"loss": out.loss.item(), "gradient_norm": norm.item(),
                    "logits": [float(f"{v:.6g}") for v in out.logits.flatten().tolist()]}
    print(name, out.loss.item(), norm.item(), out.logits.std().item(), file=sys.stderr)
with open(os.path.join(sys.argv[1], "golden.json"), "w") as file:
    json.dump(golden, file, separators=(",", ":"))
    file.write("\n")
