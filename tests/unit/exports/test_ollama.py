"""Folders for Ollama: the Modelfile, and Go templates that write what the runs' own templates write."""

import copy
import json
from importlib.util import find_spec

import pytest
from transformers import GenerationConfig

import fixtures_models
from tunesmith.component import pick
from tunesmith.errors import RunError
from tunesmith.exports.formats import go_template, ollama_templates
from tunesmith.exports.ollama import Ollama, _sampling
from tunesmith.seams import Export, Template
from tunesmith.templates.family import facts
from unit.exports.test_exports import make_run, unchanged

PLAIN = """\
{%- for turn in messages %}{{ '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
QUESTION = "What is two and three?"
gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")


@pytest.fixture
def short(tmp_path):
    run = make_run(tmp_path, prompts=[QUESTION])
    (run / "final" / "chat_template.jinja").write_text(PLAIN)
    return run


GOLDEN = '''\
FROM ./model-q8_0.gguf
TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ "" }}"""
SYSTEM """You answer in one sentence."""
PARAMETER stop "<|endoftext|>"
PARAMETER stop "<|im_end|>"
PARAMETER temperature 0.7
PARAMETER top_p 0.9
PARAMETER top_k 0
PARAMETER min_p 0.0
PARAMETER repeat_penalty 1.0
'''


@gguf
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:llama_cpp")
def test_the_folder_and_what_is_caught_in_it(short, tmp_path):
    said = short / "final" / "generation_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"do_sample": True, "temperature": 0.7, "top_p": 0.9}))
    export, out = Ollama(system="You answer in one sentence."), tmp_path / "out"
    report = export.write(short, out)
    assert report.passed
    assert report.notes[0] == "template chatml: read as the run's own on 4 conversations, no tools"
    assert (out / "Modelfile").read_text() == GOLDEN
    assert (out / "model-q8_0.gguf").is_file()
    assert export.check(short, out) == report
    (out / "Modelfile").write_text(GOLDEN.replace("assistant", "bot"))
    with pytest.raises(
        RunError, match=r"its Modelfile is another than the run's from line 4 on; its file Modelfile is d"
    ):
        export.check(short, out)
    (out / "Modelfile").write_text(GOLDEN)
    data = bytearray((out / "model-q8_0.gguf").read_bytes())
    data[-1] ^= 1
    (out / "model-q8_0.gguf").write_bytes(data)
    with pytest.raises(RunError, match=r"its file model-q8_0\.gguf is damaged"):
        export.check(short, out)


def test_a_system_message_that_would_end_early_is_refused():
    with pytest.raises(ValueError, match="three quotation marks end it in a Modelfile"):
        Ollama(system='say """')


def test_what_a_run_leaves_open_is_said_as_what_changes_nothing():
    greedy = {"temperature": 0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
    assert _sampling(GenerationConfig()) == greedy
    drawn = greedy | {"temperature": 1.0, "top_k": 20, "repeat_penalty": 1.1}
    assert _sampling(GenerationConfig(do_sample=True, top_k=20, repetition_penalty=1.1)) == drawn


@gguf
def test_a_template_that_no_row_writes_is_refused(tmp_path):
    run = make_run(tmp_path, prompts=[QUESTION])
    (run / "final" / "chat_template.jinja").write_text(PLAIN.replace("im_end|>", "im_end|>!"))
    with pytest.raises(RunError, match=r"no Go template writes what the chat template .*for .*known: chatml, qwen2"):
        Ollama().write(run, tmp_path / "out")
    assert unchanged(tmp_path)


def family_tokenizer(name):
    """A tokenizer with the tokens of a family, which puts its begin token where the family writes one."""
    from tokenizers.processors import TemplateProcessing

    tokenizer, said = fixtures_models.tiny_tokenizer(), facts(name)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.add_tokens([token for token in said.tokens if not token.endswith("_token")], special_tokens=True)
    tokenizer = pick(Template, name).prepare(tokenizer)
    if "bos_token" in said.template:
        begun = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = begun
    return tokenizer


@pytest.mark.parametrize("row", ollama_templates.rows(), ids=lambda row: row.name)
def test_each_row_writes_what_its_family_writes(row):
    tokenizer = family_tokenizer(row.name)
    found = ollama_templates.found(tokenizer)
    assert (found.name, found.tools) == (row.name, row.tools)
    tokenizer.chat_template += "."
    with pytest.raises(RunError, match="no Go template writes"):
        ollama_templates.found(tokenizer)


def test_tools_are_written_character_by_character():
    tokenizer = family_tokenizer("qwen2_5")
    for messages in ollama_templates.CALLING:
        own = tokenizer.apply_chat_template(
            copy.deepcopy(list(messages)),
            tools=list(ollama_templates.TOOLS),
            tokenize=False,
            add_generation_prompt=True,
        )
        text = ollama_templates.found(tokenizer).text
        assert ollama_templates.written(text, messages, ollama_templates.TOOLS) == own


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a {{- .X }} b", "a1 b"),
        ("a {{ .X -}} \n b", "a 1b"),
        ('{{ if eq .X 2 }}two{{ else if eq .X 1 }}one{{ else }}none{{ end }}{{ "\\n" }}', "one\n"),
        ("{{ range $i, $x := .L }}{{ $i }}{{ $x.V }}{{ $.X }}{{ .V }};{{ end }}", "0a1a;1b1b;"),
        ("{{ $n := len .L }}{{ range .L }}{{ $n }}{{ end }}{{ /* nothing */ }}", "22"),
        ("{{ and .Z (index .L 9) }}|{{ or .X (index .L 9) }}|{{ not .Z }}", "0|1|True"),
        ("{{ (index (slice .L 1) 0).V }}", None),
        ("{{ .Missing }}", ""),
        ("{{ end }}", None),
        ("{{ if .X }}", None),
        ("{{ upper .X }}", None),
    ],
)
def test_go_by_hand(template, text):
    values = {"X": 1, "Z": 0, "L": [{"V": "a"}, {"V": "b"}]}
    if text is None:
        with pytest.raises(go_template.GoError):
            go_template.render(template, values)
    else:
        assert go_template.render(template, values) == text


def test_it_is_found_by_name():
    assert pick(Export, {"type": "ollama", "outtype": "f16"}) == Ollama(outtype="f16")
