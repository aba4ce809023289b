"""Tiny real models and a tiny real tokenizer, made here and seeded: what tests use in place of mocks.

Use: `import fixtures_models` (the tests folder is on pytest's path). Only `save_model` touches the disk.
"""

import functools
import warnings
from pathlib import Path

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2")
CONTEXT = 256  # max_position_embeddings of every tiny model

CHATML = """\
{%- if tools %}{{ '<|im_start|>tools\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
{%- if message.content is string %}{{ message.content }}
{%- elif message.content %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}{{ '<call>' + (call | tojson) + '</call>' }}{% endfor %}
{{- '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

_TEXT = (
    "Hello, how are you today? I am fine, thank you. The cat sat on the mat and looked at the moon.",
    "What is two and three? Two and three is five. What is ten and seven? Ten and seven is seventeen.",
    "The river runs from the mountain to the sea, and the rain brings the water back to the mountain.",
    "system user assistant tool question answer name colour city number list first second third",
    "Grüße aus Köln! Où est la gare? ¿Dónde está? 你好，世界。今天天气很好。 🙂🚀 naïve café",
    'def add(a, b):\n    return a + b\n\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n',
)


@functools.cache
def _trained() -> str:
    """A byte-level BPE of 400 tokens trained on the sentences above, as tokenizer.json text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(chat_template=CHATML):
    """A fresh byte-level tokenizer with a ChatML template: `<|im_end|>` ends a turn, `<|endoftext|>` pads."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_config(vocab=None, arch="llama", tied=True, **changes):
    """The config of a tiny decoder: hidden size 32, 2 layers, 4 query and 2 key-value heads."""
    from transformers import AutoConfig

    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer) if vocab is None else vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if arch == "gemma2":
        sizes |= {"query_pre_attn_scalar": 8, "sliding_window": 64}
    return AutoConfig.for_model(arch, **(sizes | changes))


def tiny_model(vocab=None, arch="llama", tied=True, seed=0, scale=0.2, **changes):
    """A random float32 model in evaluation mode, the same for the same arguments; no global RNG is used.

    `scale` is the standard deviation of its matrices: large enough that answers depend on the prompt and that
    the greedy token is clear. `changes` are further config fields.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(vocab, arch, tied, **changes), dtype=torch.float32)
        with torch.no_grad():
            for parameter in dict.fromkeys(model.parameters()):
                if parameter.dim() > 1:
                    parameter.normal_(0.0, scale)
    return model.eval()


SEQ2SEQ = ("t5", "mt5", "bart", "mbart")


def tiny_seq2seq_tokenizer(chat_template=None):
    """The tokenizer above without a chat template, that ends a text with EOS as T5's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(chat_template)
    end = tokenizer.eos_token
    ending = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = ending
    return tokenizer


def tiny_seq2seq(arch="t5", seed=0, scale=0.2, **changes):
    """A random float32 encoder-decoder model in evaluation mode, with dropout off; as `tiny_model` otherwise."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    tokenizer = tiny_tokenizer()
    sizes = {"d_model": 32, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    sizes |= {"eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
    if arch in ("t5", "mt5"):
        sizes |= {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    else:
        sizes |= {"encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0, "max_position_embeddings": CONTEXT}
        sizes |= {f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")}
        sizes |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
        sizes |= {"forced_eos_token_id": None, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(arch, **(sizes | changes)), dtype=torch.float32)
        with torch.no_grad():
            for parameter in dict.fromkeys(model.parameters()):
                if parameter.dim() > 1:
                    parameter.normal_(0.0, scale)
    return model.eval()


def tiny_lora(model, seed=1, scale=0.2, **options):
    """The model wrapped by peft's LoRA, with B matrices that are not zero (a fresh LoRA changes nothing)."""
    import torch
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # peft 0.21 asks a transformers 5.23 model for a property under its old name
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            wrapped = get_peft_model(model, LoraConfig(**options))
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, scale)
    return wrapped


def save_model(folder, model=None, tokenizer=None) -> Path:
    """A model folder as hubs hold it: configs, safetensors, tokenizer files, chat template."""
    folder = Path(folder)
    (tiny_model() if model is None else model).save_pretrained(folder)
    (tiny_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder


def scripted(monkeypatch, ids):
    """Make models write these tokens, and then end their turn: the subject is what becomes of the tokens."""
    import torch

    from tunesmith.generate.decoder import Decoder
    from tunesmith.generate.engine import Generator

    class Scripted(Decoder):
        most = 1

        def begin(self, prompt, adapter=None):
            return iter(ids)

        def read(self, places):
            return places, self.step(places, [0])

        def step(self, places, tokens):
            token = next(places[0], SPECIAL.index("<|im_end|>"))
            return torch.nn.functional.one_hot(torch.tensor([token]), max(*ids, 2) + 1).float() * 1e3

        def free(self, place):
            pass

    monkeypatch.setattr(Generator, "decoder", Scripted())
