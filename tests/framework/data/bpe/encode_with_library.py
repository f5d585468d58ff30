#!/usr/bin/env python3
"""encode_with_library.py TOKENIZER_JSON TEXTS: TEXTS is a JSON list; prints the ids that the tokenizers library gives,
special tokens being text, and then the ids where they are tokens. For library_test.cpp."""
import json
import sys

from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
with open(sys.argv[2], encoding="utf-8") as file:
    texts = json.load(file)
result = []
for tokenizer.encode_special_tokens in (True, False):
    result.append([tokenizer.encode(text, add_special_tokens=False).ids for text in texts])
print(json.dumps(result))
