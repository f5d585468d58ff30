#!/usr/bin/env python3
"""Writes golden/: small tokenizers built like those of each family, and what the tokenizers library makes of hard text.

    python3 make_golden.py golden          (tokenizers 0.21.4)

Not run by the tests. Vocabularies are learnt from CORPUS below and the documentation of this repository; what is
copied from each family is the way text is cut, normalised and decoded, not its vocabulary."""
import json
import pathlib
import random
import sys

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = """
Ospreys dive feet first. The osprey's nest isn't small: they've built it, we'll see; I'd say it'S BIG. DON'T.
Der Fischadler (Pandion haliaetus) ist größer als ein Bussard; über 60 Küstenvögel. Où est l'été? Ça va très bien.
Рыба плавает в реке, скопа ловит рыбу. Καλημέρα κόσμε, ο ψαραετός πετάει. नमस्ते दुनिया, मछली और नदी।
鱼鹰在河上捕鱼。河里有很多鱼,今天天气很好。 ミサゴは魚を捕まえる。魚が好きです。 물수리는 물고기를 잡는다.
العقاب النساري يصطاد السمك. สวัสดีชาวโลก ភាសាខ្មែរ ព្រះរាជាណាចក្រ
def dive(depth: int) -> float:\n    if depth > 100:\n        return 3.14159\n\treturn 2 ** depth  # 1234567890\n
for (int i = 0; i < 1024; ++i) {\n\t\tx[i] += y[i] * 0x7fff;\n}\n\n\n    while (true) { break; }\r\n
2026-11-29 00:12:34,567 1,000,000.00 v1.2.3 127.0.0.1 https://example.org/a?b=c&d=e%20f
"""

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n\n", "\t\t x", " \n  \n   x", "a  b   c    d", "x" + " " * 40 + "y", " " * 33,
    "\r\n\r\nx\r\n", "\u00a0\u2003\u3000x\u0085y\u2028z", "a\u180eb", "\u200b\u200c\u200d\ufeff",
    "Hello, world!", "hello   World  ", "I'm you're he'll she'd they've it's isn't", "I'M YOU'RE IT'S", "it'\u017f it'\u212a",
    "'s 't 'll '", "1 12 123 1234 12345 123456 1234567 12345678", "3.14159e-10 0x7fff 1,000,000", "\u0661\u0662\u0663 \u2167 \u00bd \u00b2",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n", "for(;;){i++;}//???!!!\n", "a=b&&c||d<=e>>=f;",
    "\u9c7c\u9e70\u5728\u6cb3\u4e0a\u6355\u9c7c\u3002", "\u30df\u30b5\u30b4\u306f\u9b5a\u3092\u6355\u307e\u3048\u308b",
    "\ubb3c\uc218\ub9ac\ub294 \u1106\u116e\u11af", "\u0440\u044b\u0431\u0430 \u0432 \u0440\u0435\u043a\u0435",
    "\u1797\u17b6\u179f\u17b6\u1781\u17d2\u1798\u17c2\u179a", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "e\u0301 \u00e9 e\u0323\u0301 e\u0301\u0323 \u1ea1\u0302 a\u0302\u0323", "\u212b \u2126 \ufb01 \u1e9b\u0323 \u0344 \u0958 \u2adc",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "Z\u0351\u036b\u0343\u036a\u0302\u0363a\u0334\u0335\u031b\u031bl\u0321\u0353g\u0322\u0358o", "\ufffd\ufffd broken \ufffd",
    "\x00\x01\x02\x1b[31m\x7f\x80", "\U00020000\U0002a6df\U00030000 \U000e0041 \U000f0000\U0010fffd",
    # In the manner of the string by which llama.cpp tells pre-tokenizers apart.
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f (multiple emojis) \u2705 \U0001f999\U0001f999 3 33 333 3333 "
    "33333 333333 3333333 33333333 3.3 3..3 3...3 \u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f\u17a2\u17b6\u1785\U0001f601 ?\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e "
    "------======= \u043d\u0435\u0449\u043e \u043d\u0430 \u0411\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438 ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll "
    "make it, 'D you like some tea? We'Ve a'lL",
    "<|endoftext|>", "a<|im_start|>user\nhi<|im_end|>\n", "x <mask> y", "x  <mask>  y<pad>  z", "sword word words, word.", "<tool_call>{}</tool_call>",
    "caf\u00e9 cafe\u0301 CAF\u00c9", "tab\tdouble  space", "<s>[INST] hi [/INST] yes</s>", " <s> x </s> ", "<0x41> \u2581 a\u2581b \u2581\u2581",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
]


def random_texts():
    rng = random.Random(1)
    words = "the osprey fish river don't we'll 42 1234567 {} () -> \n \n\n \t   . , \u00e9 e\u0301 \u9c7c \u0440\u0435\u043a \U0001f680".split(" ")
    texts = []
    for plane in range(17):
        points = [plane * 0x10000 + rng.randrange(0x10000) for _ in range(14)]
        texts.append(" ".join(chr(p) for p in points if not 0xd800 <= p < 0xe000))
    for _ in range(25):
        text = ""
        for _ in range(16):
            kind = rng.randrange(5)
            if kind == 0:
                text += chr(rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x300, 0x3000), rng.randrange(0x3000, 0xd800)]))
            elif kind == 1:
                text += rng.choice([" ", "\n", "\t", "\u00a0", "\u3000", "\r"]) * rng.randrange(1, 4)
            else:
                text += rng.choice(words) + rng.choice(["", " "])
        texts.append(text)
    return texts


def learn(pre_tokenizer, size, normalizer=None, alphabet=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    docs = [CORPUS] * 3 + [p.read_text() for p in sorted((pathlib.Path(__file__).parents[4] / "docs").glob("*.md"))]
    tokenizer.train_from_iterator([line for d in docs for line in d.splitlines(keepends=True)],
                                  trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False))
    return json.loads(tokenizer.to_str())["model"]


def token(number, content, special=True, **flags):
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": not special, "special": special} | flags


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def describe(model, pre=None, normalizer=None, decoder=None, added=(), post=None):
    """A tokenizer.json; `pre` and `decoder` come from the library, so that they look as real files do."""
    part = lambda x: x if x is None or isinstance(x, dict) else json.loads(x.__getstate__())
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added), "normalizer": part(normalizer),
            "pre_tokenizer": part(pre), "post_processor": post, "decoder": part(decoder or decoders.ByteLevel()), "model": model}


def bytes_level(pre, size, **more):
    return learn(pre, size, alphabet=pre_tokenizers.ByteLevel.alphabet()) | more


def template(*before):
    names = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in before}
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": n, "type_id": 0}} for n in names] + [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": names}


BYTE_POST = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def gpt2():
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = bytes_level(pre, 1500)
    model["merges"] = [" ".join(m) for m in model["merges"]]  # as older files have them
    model["vocab"]["<|endoftext|>"] = 1500
    return describe(model, pre, added=[token(1500, "<|endoftext|>", normalized=True)], post=BYTE_POST)


def llama3():
    model = bytes_level(split(LLAMA3), 1500, ignore_merges=True)
    # Words that the merges do not reach: only a look-up of the whole piece gives them.
    for word in ["\u0120apple", "\u0120World", "isn"]:
        model["vocab"].setdefault(word, len(model["vocab"]))
    first = len(model["vocab"])
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    post = {"type": "Sequence", "processors": [BYTE_POST, template(("<|begin_of_text|>", first))]}
    return describe(model, split(LLAMA3), added=[token(first + i, n) for i, n in enumerate(names)], post=post)


def qwen2():
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = [token(1500 + i, n) for i, n in enumerate(names)]
    added += [token(1503 + i, n, special=False, normalized=False) for i, n in enumerate(["<tool_call>", "</tool_call>"])]
    return describe(bytes_level(split(QWEN2), 1500), split(QWEN2), normalizers.NFC(), added=added, post=BYTE_POST)


def smollm():
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return describe(bytes_level(pre, 1500), pre, added=[token(1500, "<|endoftext|>"), token(1501, "<|im_start|>"), token(1502, "<|im_end|>")])


def odd():
    pre = pre_tokenizers.ByteLevel(add_prefix_space=True)
    added = [token(600, "<mask>", lstrip=True), token(601, "<pad>", rstrip=True), token(602, "word", special=False, single_word=True),
             token(603, "e\u0301", special=False), token(604, "  ", special=False, normalized=False), token(605, "<|endoftext|>")]
    return describe(bytes_level(pre, 600), pre, normalizers.NFC(), added=added)


def sentencepieces(size):
    """A vocabulary in the order of Llama 2: special pieces, bytes, then learnt ones."""
    normalizer = normalizers.Replace(" ", "\u2581")
    learnt = learn(pre_tokenizers.Split(Regex("\u2581*[^\u2581]*"), "isolated"), size, normalizer)
    spaces = ["\u2581" * n for n in (2, 4, 8)]
    merges = [["\u2581" * (n // 2), "\u2581" * (n // 2)] for n in (2, 4, 8)] + learnt["merges"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + spaces
    pieces += [p for p in learnt["vocab"] if p not in pieces]
    vocab = {p: i for i, p in enumerate(pieces)}
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": merges}


LLAMA2_ADDED = [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>")]


def llama2():
    normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return describe(sentencepieces(1400), normalizer=normalizer, decoder=decoder, added=LLAMA2_ADDED, post=template(("<s>", 1)))


def mistral():
    pre = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    model = sentencepieces(1000)
    added = LLAMA2_ADDED + [token(len(model["vocab"]) + i, n) for i, n in enumerate(["[INST]", "[/INST]"])]
    decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return describe(model, pre=pre, decoder=decoder, added=added, post=template(("<s>", 1)))


def main(folder):
    folder.mkdir(exist_ok=True)
    vectors = {"texts": TEXTS + random_texts(), "ids": {}, "special": {}}
    for make in (gpt2, llama3, qwen2, smollm, odd, llama2, mistral):
        text = json.dumps(make(), ensure_ascii=False, separators=(",", ":"))
        (folder / f"{make.__name__}.json").write_text(text + "\n")
        tokenizer = Tokenizer.from_str(text)
        encode = lambda t: tokenizer.encode(t, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True
        vectors["ids"][make.__name__] = [encode(t) for t in vectors["texts"]]
        tokenizer.encode_special_tokens = False
        # Where recognising special tokens makes a difference.
        vectors["special"][make.__name__] = {
            str(i): ids for i, t in enumerate(vectors["texts"]) if (ids := encode(t)) != vectors["ids"][make.__name__][i]}
        print(make.__name__, len(text), tokenizer.get_vocab_size(), sum(map(len, vectors["ids"][make.__name__])), file=sys.stderr)
    (folder / "vectors.json").write_text(json.dumps(vectors, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
