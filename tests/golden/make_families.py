"""Writes `families/NAME.json`: what the published templates make of seeded random conversations.

    python tests/golden/make_families.py FOLDER [FASTCHAT]

FOLDER holds the published jinja texts by the names below (`chatml.jinja`), which are others' and no part of this
repository; FASTCHAT is FastChat's `conversation.py`. Each file holds where a text comes from, the first 16 hex digits
of the SHA-256 of each text, and two conversations in full.
"""

import hashlib
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the folder of the tests, as pytest has it

import fixtures_models
from golden.chats import Shape, conversation

OUT = Path(__file__).parent / "families"
SEEDS = range(100)
TRL = "trl 1.16.0, trl/chat_templates/{}.jinja"
LLAMA_CPP = "llama-cpp-python 0.3.36, vendor/llama.cpp/tests/test-chat-template.cpp, {}"
FASTCHAT = "FastChat (fschat 0.2.36), fastchat/conversation.py, {}"
OPENVINO = "openvinotoolkit/openvino.genai e042d0f, tests/python_tests/tokenizer_configs.py, {}"
CHATS = "chujiezheng/chat_templates 31507be, chat_templates/{}.jinja"
VLLM = "vllm-project/vllm 87b6352, examples/{}.jinja"


@dataclass(frozen=True)
class Reference:
    """A published template, and how a conversation becomes what it reads."""

    cited: str
    shape: Shape
    bos: str | None = None
    eos: str = "<|endoftext|>"  # the tokenizer's own
    adapt: str | None = None  # name of a function here
    compares: tuple[str, ...] = ("whole", "prompt")  # the conversation, and what is sent for its last answer
    note: str = ""


TALK, ORDERED, NO_SYSTEM = Shape(), Shape(disorder=True), Shape(system=False)
ONE_CALL, CALLS = Shape(tools=True), Shape(tools=True, calls=2, rounds=2, said=True)
MISTRAL = Shape(tools=True, calls=2, rounds=2, disorder=True)
DEEPSEEK = {"bos": "<｜begin▁of▁sentence｜>", "eos": "<｜end▁of▁sentence｜>"}
REFERENCES = {
    "alpaca": Reference("stanford_alpaca train.py, PROMPT_DICT", ORDERED, "<s>", "</s>", "alpaca"),
    "baichuan2": Reference(FASTCHAT.format("baichuan2-chat"), TALK, "<s>", "</s>", "baichuan2"),
    "chatglm3": Reference(LLAMA_CPP.format("ChatGLM3"), TALK, None, "</s>", "next_turn"),
    "chatml": Reference(LLAMA_CPP.format("teknium/OpenHermes-2.5-Mistral-7B"), ORDERED),
    "deepseek_r1": Reference(
        TRL.format("deepseek_r1_distill"), Shape(reasoning=True), **DEEPSEEK, adapt="no_reasoning", compares=("prompt",)
    ),
    "deepseek_v2": Reference(LLAMA_CPP.format("DeepSeek-V2"), ORDERED, **DEEPSEEK),
    "deepseek_v3": Reference(
        TRL.format("deepseekv3"),
        Shape(tools=True, listed=False, calls=2, said=True),
        **DEEPSEEK,
        adapt="text_arguments",
        note="without the <think> that this file adds to the generation prompt",
    ),
    "gemma": Reference(TRL.format("gemma"), Shape(system=False, disorder=True), "<bos>", "<eos>"),
    "gemma3": Reference(TRL.format("gemma3"), ORDERED, "<bos>", "<eos>"),
    "glm4": Reference(LLAMA_CPP.format("ChatGLM4"), Shape(tools=True, said=True, rounds=2), adapt="glm4"),
    "internlm2": Reference(
        VLLM.format("tool_chat_template_internlm2_tool"),
        CALLS,
        "<s>",
        "</s>",
        "internlm2",
        note="`parameters` in calls",
    ),
    "llama2": Reference(CHATS.format("llama-2-chat"), ORDERED, "<s>", "</s>"),
    "llama3": Reference(TRL.format("llama3"), ORDERED, "<|begin_of_text|>", "<|end_of_text|>"),
    "llama3_1": Reference(
        TRL.format("llama3_1"), Shape(tools=True, calls=2, rounds=2), "<|begin_of_text|>", "<|end_of_text|>"
    ),
    "mistral_v1": Reference(LLAMA_CPP.format("mistralai v1"), ORDERED, "<s>", "</s>"),
    "mistral_v3": Reference(LLAMA_CPP.format("mistralai v3"), MISTRAL, "<s>", "</s>", "before_the_question"),
    "mistral_v3_tekken": Reference(
        LLAMA_CPP.format("mistralai v3-tekken"), MISTRAL, "<s>", "</s>", "before_the_question"
    ),
    "mistral_v7": Reference(LLAMA_CPP.format("mistralai v7"), ORDERED, "<s>", "</s>"),
    "phi3": Reference(LLAMA_CPP.format("Phi-3-vision"), TALK, "<s>"),
    "phi4": Reference(LLAMA_CPP.format("phi-4"), TALK),
    "qwen2": Reference("Qwen/Qwen2-7B-Instruct, tokenizer_config.json", ORDERED),
    "qwen2_5": Reference(TRL.format("qwen2_5"), CALLS),
    "qwen3": Reference(TRL.format("qwen3"), Shape(tools=True, calls=2, rounds=2, said=True, reasoning=True)),
    "vicuna": Reference(FASTCHAT.format("vicuna_v1.1"), TALK, "<s>", "</s>", "vicuna"),
    "yi": Reference(FASTCHAT.format("Yi-34b-chat"), NO_SYSTEM, None, "<|endoftext|>", "yi"),
    "yi_1_5": Reference(OPENVINO.format("Yi-1.5"), TALK),
    "zephyr": Reference(OPENVINO.format("TinyLlama-Chat"), ORDERED, None, "</s>"),
}


class Writer:
    """A published template by its file, for tokenizers of these two tokens."""

    def __init__(self, name: str, folder: Path, fastchat: Path | None) -> None:
        self.reference = REFERENCES[name]
        file = folder / f"{name}.jinja"
        self.tokenizer = fixtures_models.tiny_tokenizer(file.read_text("utf-8") if file.exists() else None)
        self.tokenizer.bos_token, self.tokenizer.eos_token = self.reference.bos, self.reference.eos
        self.fastchat = fastchat

    def text(self, messages, tools, prompt: bool) -> str | None:
        """The text of a conversation; None where it is not compared."""
        adapt = self.reference.adapt
        return (globals()[adapt] if adapt else Writer.jinja)(self, messages, tools, prompt)

    def jinja(self, messages, tools, prompt):
        """As the jinja file writes."""
        return self.tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt
        )

    def conversation(self, name, messages, prompt, system=""):
        """As FastChat writes; its templates leave out the BOS that the tokenizer adds."""
        spec = importlib.util.spec_from_file_location("fastchat_conversation", self.fastchat)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.get_conv_template(name)
        for message in messages:
            if message["role"] == "system":
                found.set_system_message(message["content"])
            else:
                found.append_message(found.roles[message["role"] == "assistant"], message["content"])
        if prompt:
            found.append_message(found.roles[1], None)
        return found.get_prompt()


def alpaca(writer, messages, tools, prompt):
    """PROMPT_DICT["prompt_no_input"].format_map(...) + f"{output}{eos_token}", turn after turn."""
    text = writer.reference.bos
    if messages[0]["role"] == "system":
        text, messages = text + messages[0]["content"], messages[1:]
    else:
        text += "Below is an instruction that describes a task. "
        text += "Write a response that appropriately completes the request."
    if [turn["role"] for turn in messages] != ["user", "assistant"] * (len(messages) // 2) + ["user"] * prompt:
        raise ValueError("turns out of order")
    for question, answer in zip(messages[::2], [*messages[1::2], None], strict=prompt):
        text += f"\n\n### Instruction:\n{question['content']}\n\n### Response:"
        text += "" if answer is None else answer["content"] + writer.reference.eos
    return text


def vicuna(writer, messages, tools, prompt):
    """FastChat's, behind BOS."""
    return writer.reference.bos + writer.conversation("vicuna_v1.1", messages, prompt)


def yi(writer, messages, tools, prompt):
    """FastChat's."""
    return writer.conversation("Yi-34b-chat", messages, prompt)


def baichuan2(writer, messages, tools, prompt):
    """FastChat's, with the EOS that Baichuan 2's own fine-tuning puts behind the last answer."""
    return writer.conversation("baichuan2-chat", messages, prompt) + ("" if prompt else writer.reference.eos)


def next_turn(writer, messages, tools, prompt):
    """With the token of the user's turn, at which generation stops, behind the last answer."""
    return writer.jinja(messages, tools, prompt) + ("" if prompt else "<|user|>")


def no_reasoning(writer, messages, tools, prompt):
    """It reads reasoning in the content alone."""
    bare = [{key: turn[key] for key in turn if key != "reasoning_content"} for turn in messages]
    return writer.jinja(bare, tools, prompt)


def text_arguments(writer, messages, tools, prompt):
    """It reads arguments as JSON text."""
    return writer.jinja(_text_arguments(messages), tools, prompt)


def internlm2(writer, messages, tools, prompt):
    """The same, and calls have `parameters`, as InternLM's page on its format says."""
    return text_arguments(writer, messages, tools, prompt).replace('", "arguments": {', '", "parameters": {')


def before_the_question(writer, messages, tools, prompt):
    """It forgets the system message where anything follows the last question: not compared there."""
    if messages[0]["role"] == "system" and messages[-1]["role"] != "user":
        return None
    return writer.jinja(messages, tools, prompt)


def glm4(writer, messages, tools, prompt):
    """Its tools are in the first message, a call is a message with its name as metadata, a result an observation."""
    turns = []
    for message in _text_arguments(messages):
        turns.append(message | {"role": "observation" if message["role"] == "tool" else message["role"]})
        for call in message.get("tool_calls", []):
            given = call["function"]
            turns.append({"role": "assistant", "metadata": given["name"], "content": given["arguments"]})
    if tools and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": ""})
    if tools:
        turns[0] = turns[0] | {"tools": tools}
    return next_turn(writer, turns, None, prompt)


def _text_arguments(messages):
    def spoken(call):
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return call | {"function": call["function"] | {"arguments": arguments}}

    return [
        turn | {"tool_calls": [spoken(call) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in messages
    ]


def digest(text: str | None) -> str | None:
    """The first 16 hex digits of a text's SHA-256; None stays None."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]


def asked(kind: str, messages):
    """The turns of a comparison: all, or those before the last answer."""
    return messages if kind == "whole" else messages[:-1]


def golden(name: str, folder: Path, fastchat: Path | None):
    """What the published template makes of each conversation: a digest, `refused`, or null where it is not compared."""
    reference, writer = REFERENCES[name], Writer(name, folder, fastchat)
    found = {kind: [] for kind in reference.compares}
    examples = []
    for seed in SEEDS:
        messages, tools = conversation(seed, reference.shape)
        for kind in reference.compares:
            try:
                text = writer.text(asked(kind, messages), tools, kind == "prompt")
            except Exception:  # noqa: BLE001  # whatever the template raises, the conversation is refused
                found[kind].append("refused")
                continue
            found[kind].append(digest(text))
            if text and len(examples) < 2 and kind == reference.compares[0] and len(messages) > 3:
                examples.append({"seed": seed, "messages": messages, "tools": tools, kind: text})
    return {
        "reference": reference.cited,
        "note": reference.note,
        "bos_token": reference.bos,
        "eos_token": reference.eos,
        "shape": asdict(reference.shape),
        "digests": found,
        "examples": examples,
    }


def main(folder: str, fastchat: str | None = None) -> None:
    """Write every file anew."""
    OUT.mkdir(exist_ok=True)
    for name in REFERENCES:
        made = golden(name, Path(folder), Path(fastchat) if fastchat else None)
        (OUT / f"{name}.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        counts = {
            kind: (len(set(found) - {"refused", None}), found.count("refused"), found.count(None))
            for kind, found in made["digests"].items()
        }
        print(name, counts)


if __name__ == "__main__":
    main(*sys.argv[1:])
