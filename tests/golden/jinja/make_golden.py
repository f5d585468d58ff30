"""Writes golden.json: what transformers makes of the templates of this folder. Run where transformers is installed:
python make_golden.py [check]; `check` compares instead of writing, and fails where it differs."""
import json, pathlib, sys

here = pathlib.Path(__file__).parent
two = [{"role": "user", "content": " hällo <|im_end|> "}, {"role": "assistant", "content": "\nfine </s>\n"}]
four = two + [{"role": "user", "content": "and now?"},
              {"role": "assistant", "content": "<think>\nlet me see\n</think>\n\nnothing"}]
cases = {
    "two": (two, False),
    "asked": (two[:1], True),
    "system": ([{"role": "system", "content": " Be short. "}] + four, False),
    "later": (four[:3], True),
    "wrong": (two[:1] + two[:1], False),
}


def main():
    from transformers.utils.chat_template_utils import _compile_jinja_template

    golden = {}
    for path in sorted(here.glob("*.jinja")):
        template = _compile_jinja_template(path.read_text())
        template.environment.globals.pop("strftime_now", None)  # Osprey has no clock
        for name, (messages, ask) in cases.items():
            try:
                text = template.render(messages=messages, add_generation_prompt=ask, tools=None, bos_token="<s>",
                                       eos_token="</s>")
            except Exception as e:  # what raise_exception() of the template says
                text = {"error": str(e)}
            golden.setdefault(path.name, {})[name] = text
    conversations = {name: {"messages": m, "ask": ask} for name, (m, ask) in cases.items()}
    text = json.dumps({"cases": conversations, "rendered": golden}, ensure_ascii=False, indent=1) + "\n"
    if sys.argv[1:] == ["check"]:
        sys.exit(0 if (here / "golden.json").read_text() == text else "golden.json is not what transformers makes now")
    (here / "golden.json").write_text(text)


try:
    import transformers  # noqa: F401
except ImportError:
    print("transformers is not installed")
    sys.exit(77)
main()
