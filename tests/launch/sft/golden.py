#!/usr/bin/env python3
"""Makes tests/launch/sft: a tokenizer of 48 tokens with a chat template, rows of conversations, and what a plain loop of
PyTorch does when it fine-tunes tests/models/hf/golden/llama3 on them: tokens, which of them are learnt, the losses and
gradient norms of the first steps, and the loss of every row afterwards.

    python3 golden.py FOLDER        (torch 2.2.2, transformers 4.52.4)

Not run by the tests."""
import json
import os
import string
import sys

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = sys.argv[1]
MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../models/hf/golden/llama3")
TEMPLATE = ("{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
            "{{ 'q: ' + message['content'] + '\n' }}{% else %}{{ 'a: ' + message['content'] + eos_token }}{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}")
# Questions and answers by turns; lengths differ, so that the two halves of a batch hold different numbers of targets.
ROWS = [
    ["what is an osprey?", "a bird that eats fish."],
    ["where?", "near water."],
    ["is it large?", "yes", "how large?", "as a raven."],
    ["name a hunter", "the owl"],
    ["what does it eat?", "fish and then more fish."],
    ["does it sing?", "no."],
    ["when is it seen?", "in spring", "and then?", "in the warm south."],
    ["who is there?", "an eagle."],
]
STEPS, MICRO_BATCHES, LEARNING_RATE, WARMUP, DECAY, CLIP = 3, 2, 0.02, 2, 0.1, 1.0


def write_tokenizer():
    """Byte-level BPE of the characters that occur, and a few merges."""
    merges = ["t h", "th e", "i n", "a n", "e r", "i s", "Ġ i", "Ġ the", "h a", "in g", "Ġ a", "q :", "Ġ is", "r e"]
    tokens = ["<pad>", "<s>", "</s>", *string.ascii_lowercase, "Ġ", "Ċ", ".", "?", ":"]
    tokens += [merge.replace(" ", "") for merge in merges]
    special = [{"id": i, "content": tokens[i], "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False} for i in range(3)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    directory = os.path.join(FOLDER, "tokenizer")
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "tokenizer.json"), "w") as file:
        json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
                   "pre_tokenizer": level, "post_processor": None, "decoder": level,
                   "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                             "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}}, file, indent=1)
        file.write("\n")
    with open(os.path.join(directory, "tokenizer_config.json"), "w") as file:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                   "pad_token": "<pad>", "chat_template": TEMPLATE}, file, indent=1)
        file.write("\n")
    return PreTrainedTokenizerFast.from_pretrained(directory)


def encoded(tokenizer, messages):
    """Tokens, and -100 where one is not learnt: a conversation is encoded piece by piece, cut where answers begin and end."""
    ids, labels, done = [], [], ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages[:i + 1], tokenize=False)
        assert prompt.startswith(done) and whole.startswith(prompt)
        for text, learnt in ((prompt[len(done):], False), (whole[len(prompt):], True)):
            piece = tokenizer.encode(text, add_special_tokens=False)
            ids += piece
            labels += piece if learnt else [-100] * len(piece)
        done = whole
    return ids, labels


def row_nats(model, row):
    """Nats, summed over the targets of a row, and how many they are."""
    ids, labels = (torch.tensor([one]) for one in row)
    logits = model(ids).logits[0, :-1]
    targets = labels[0, 1:]
    return (torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"),
            int((targets != -100).sum()))


tokenizer = write_tokenizer()
conversations = [[{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(row)] for row in ROWS]
with open(os.path.join(FOLDER, "rows.jsonl"), "w") as file:
    for messages in conversations:
        file.write(json.dumps({"messages": messages}) + "\n")
rows = [encoded(tokenizer, messages) for messages in conversations]
targets = sum(label != -100 for _, labels in rows for label in labels[1:])

model = LlamaForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32, attn_implementation="eager").train()
optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
# The first step learns already; the rate then falls to zero at the step that is never taken.
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda step: (step + 1) / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP))
losses, norms = [], []
for step in range(STEPS):
    nats = 0.0
    for micro in range(MICRO_BATCHES):
        loss = sum(row_nats(model, row)[0] for row in rows[micro::MICRO_BATCHES])
        (loss / targets).backward()
        nats += loss.item()
    losses.append(nats / targets)
    norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
with torch.no_grad():
    after = [row_nats(model, row)[0].item() for row in rows]
golden = {"ids": [ids for ids, _ in rows], "labels": [labels for _, labels in rows], "targets": targets, "losses": losses,
          "gradient_norms": norms, "loss_after": sum(after) / targets, "nats_after": after}
with open(os.path.join(FOLDER, "golden.json"), "w") as file:
    json.dump(golden, file, separators=(",", ":"))
    file.write("\n")
print([len(ids) for ids, _ in rows], targets, losses, norms, golden["loss_after"], file=sys.stderr)
