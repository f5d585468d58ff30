"""What Osprey exports of the golden models gives the golden logits in transformers, as a Hugging Face directory and, read
by the gguf package, as a GGUF file. Called by transformers.sh."""
import json
import shutil
import subprocess
import sys
import tempfile

try:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

osprey, golden_dir = sys.argv[1:]
golden = json.load(open(f"{golden_dir}/golden.json"))
ids = torch.tensor([golden["ids"]])


def logits(directory):
    model, info = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32, attn_implementation="eager",
                                                       output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        return model(ids).logits.flatten()


def gguf_logits(directory, path):
    """The directory's architecture with the file's weights, named, turned back and unpacked by transformers and gguf."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory, attn_implementation="eager"))
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    model.tie_weights()
    with torch.no_grad():
        return model.float().eval()(ids).logits.flatten()


def export(*arguments):
    subprocess.run([osprey, "export", *arguments], check=True, stdout=subprocess.DEVNULL)


def compare(what, found, wanted, tolerance):
    error = float((found - wanted).abs().max() / wanted.abs().max())
    print(f"{what:40} relative error {error:.1e}")
    if error > tolerance:
        sys.exit(f"FAILED: {what}: {error} is more than {tolerance}")


TOKENIZER = {
    "added_tokens": [], "post_processor": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "model": {"type": "BPE", "vocab": {chr(97 + i): i for i in range(48)}, "merges": ["a b"]}}


def change(directory, keys):
    """Other keys in config.json, and a tokenizer."""
    path = f"{directory}/config.json"
    config = json.load(open(path))
    config.update(keys)
    json.dump(config, open(path, "w"))
    json.dump(TOKENIZER, open(f"{directory}/tokenizer.json", "w"))


with tempfile.TemporaryDirectory() as folder:
    for name in golden:
        if name in ("ids", "qwen2_windows"):  # 4.52 does not compute the latter, see golden.py
            continue
        export(f"{golden_dir}/{name}", f"{folder}/{name}-hf")
        compare(f"{name} as a directory", logits(f"{folder}/{name}-hf"), torch.tensor(golden[name]["logits"]), 1e-5)

    try:
        import gguf
    except ImportError as error:
        print(f"the GGUF part is skipped: {error}")
        sys.exit(0)
    # The weights alone come out of the file, so it makes no difference that 4.52 knows no scaling in GGUF files. Widths of
    # 16 are no whole blocks of q8_0 and mxfp4, and qwen3 is unknown there; gguf_test.cpp has those.
    for name, keys in (("llama3", {"rope_scaling": None}), ("qwen2", {})):
        source = f"{folder}/{name}-source"
        shutil.copytree(f"{golden_dir}/{name}", source)
        change(source, keys)
        wanted = logits(source)
        for kind, tolerance in (("f32", 1e-5), ("f16", 3e-3), ("bf16", 3e-2)):
            path = f"{folder}/{name}-{kind}.gguf"
            export(source, path, "--to", "gguf", "--type", kind)
            reader = gguf.GGUFReader(path)
            assert reader.get_field("tokenizer.ggml.tokens").contents()[:2] == ["a", "b"]
            compare(f"{name} as GGUF, {kind}", gguf_logits(source, path), wanted, tolerance)
