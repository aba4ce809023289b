"""The chat as a program (a pipe, a terminal with Ctrl-C) and its commands one by one."""

import io
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

import fixtures_models
from tunesmith.errors import RunError
from tunesmith.generate.asked import Chatting, Sampling
from tunesmith.generate.chat import Chat, save
from tunesmith.generate.engine import Generator
from tunesmith.generate.terminal import chat
from tunesmith.generate.voice import Voice

TURNS = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Grüße 🙂"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fixtures_models.save_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def session():
    generator = Generator(fixtures_models.tiny_model(), fixtures_models.tiny_tokenizer())
    out = Console(file=io.StringIO(), force_terminal=False)
    notes = Console(file=io.StringIO(), force_terminal=False, width=200)
    return Chat([Voice("tiny", generator)], out, notes, sampling=Sampling(max_new_tokens=8))


def said(session):
    """What the program has told since the last call."""
    text = session.notes.file.getvalue()
    session.notes.file.seek(0)
    session.notes.file.truncate()
    return text


def test_a_pipe_gets_the_answers_alone(folder):
    command = [sys.executable, "-m", "tunesmith", "chat", str(folder), "--max-new-tokens", "12"]
    done = subprocess.run(
        command,
        input="Hello, how are you?\n\nWhat is two and three?\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    generator = Generator.open(str(folder))
    first = [{"role": "user", "content": "Hello, how are you?"}]
    one = generator.complete(first, max_new_tokens=12)
    both = [
        *first,
        {"role": "assistant", "content": one},
        {"role": "user", "content": "What is two and three?"},
    ]
    assert one and done.stdout == f"{one}\n{generator.complete(both, max_new_tokens=12)}\n"
    assert str(folder) in done.stderr and "M parameters" in done.stderr and "/help" in done.stderr


def piped(folder, raw):
    """The answers to what a pipe says, the program's words, and whether all was done."""
    out, notes = io.StringIO(), io.StringIO()
    lines = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")
    consoles = {"console": Console(file=out), "notes": Console(file=notes, width=300)}
    done = chat(str(folder), how=Chatting(max_new_tokens=8), lines=lines, **consoles)
    return out.getvalue(), notes.getvalue(), done


@pytest.mark.parametrize("raw", [b'"""\nHello\nyou', b'"""\nHello\nyou\n', b"Hello\\\nyou\\", b"Hello\\\nyou\\\n"])
def test_what_the_end_of_the_input_leaves_open_is_sent(folder, raw):
    expected = Generator.open(str(folder)).complete([{"role": "user", "content": "Hello\nyou"}], max_new_tokens=8)
    out, _, done = piped(folder, raw)
    assert (out, done) == (f"{expected}\n", True)


@pytest.mark.parametrize(("raw", "said"), [(b"Hello\nGr\xfc\xdfe\n", "line 2"), (b"\xff\xfeH\x00", "line 1")])
def test_bytes_that_are_no_text_are_named(folder, raw, said):
    named = {"line 2": "xfc", "line 1": "xff"}[said]
    with pytest.raises(RunError, match=rf"^{said} of the input is not UTF-8: it holds the bytes b'\\{named}"):
        piped(folder, raw)


@pytest.mark.parametrize(
    ("raw", "said", "answers"),
    [
        (b"word " * 40_000, "not sent: ", True),
        (b"/params regex=(", "not sent: regex: ", False),
        (b"/params regex=(\nHi\n/params regex=null", "not sent: regex: ", True),
        (b"/tools nowhere.json", "not taken: ", True),
        (b"/prams", "there is no command /prams", True),
    ],
)
def test_a_program_is_told_that_something_was_not_done(folder, raw, said, answers):
    if b"regex" in raw:
        pytest.importorskip("llguidance", reason="answers are held to a form by llguidance, which is not installed")
    out, notes, done = piped(folder, raw + b"\nHello\n")
    assert (said in notes, bool(out), done) == (True, answers, False), notes


def test_an_exit_status_says_it_too(monkeypatch):
    from tunesmith.cli.main import main
    from tunesmith.generate import terminal

    for done in (True, False):
        monkeypatch.setattr(terminal, "chat", lambda *given, done=done, **options: done)
        assert main(["chat", "builtin:tiny"]) == (0 if done else 1)


def test_missing_model_is_one_line_and_not_a_traceback(tmp_path):
    command = [sys.executable, "-m", "tunesmith", "chat", str(tmp_path / "none")]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and str(tmp_path / "none") in done.stderr


def test_chat_reads_lines_until_quit(folder):
    out, notes = io.StringIO(), io.StringIO()
    lines = io.StringIO("/system Be kind.\nHello?\n/quit\nnot read\n")
    chat(
        str(folder),
        how=Chatting(max_new_tokens=6),
        console=Console(file=out),
        notes=Console(file=notes),
        lines=lines,
    )
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    assert out.getvalue() == Generator.open(str(folder)).complete(messages, max_new_tokens=6) + "\n"
    assert lines.readline() == "not read\n"


def test_history_system_and_reset(session):
    session.take("Hello?")
    session.take("/system Speak of the sea.")
    assert "Speak of the sea." in said(session)
    session.take("And now?")
    assert [turn["role"] for turn in session.messages] == ["system", "user", "assistant", "user", "assistant"]
    session.take("/reset")
    assert session.messages == [{"role": "system", "content": "Speak of the sea."}]
    session.take("/system")
    assert "Speak of the sea." in said(session)


def test_wrong_command_has_a_near_match_and_is_not_sent(session):
    session.take("/sytem x")
    assert "no command /sytem. Did you mean '/system'?" in said(session)
    assert session.turns == [] and session.out.file.getvalue() == ""
    session.take(" /etc/hosts is a file?")
    assert session.turns[0]["content"] == "/etc/hosts is a file?"
    session.take("   ")
    assert len(session.turns) == 2


def test_help_names_every_command(session):
    session.take("/help")
    text = said(session)
    assert all(command in text for command in session.commands)


def test_ctrl_c_before_the_first_word_keeps_the_conversation(session, monkeypatch):
    """As where a server thinks long."""
    session.take("Hello?")
    before = list(session.turns)

    def waits(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Voice, "_begin", waits)
    session.take("And now?")
    assert "no answer: the question is not kept" in said(session) and session.turns == before


def test_cut_and_refused_answers_are_told(session):
    session.take("Hello?")
    assert "cut at 8 tokens" in said(session)
    session.take("water " * 300)
    assert "not sent: the last message makes a prompt of" in said(session)
    assert len(session.turns) == 2
    session.voices[0].turns = [dict(TURNS[place % 2]) for place in range(60)]
    session.take("And now?")
    assert "turns no longer fit" in said(session)
    assert len(session.turns) == 62


def test_control_characters_do_not_reach_a_terminal(session, monkeypatch):
    evil = "a\x1b[2Jb\x9b2Jc\td\n\x07"
    ids = session.voices[0].generator.tokenizer(evil)["input_ids"]
    fixtures_models.scripted(monkeypatch, ids)
    session.sampling = Sampling(max_new_tokens=20)
    session.out = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    session.take("Hello?")
    assert session.out.file.getvalue() == "a[2Jb2Jc\td\n\n"
    assert session.turns[1]["content"] == evil
    session.out = Console(file=io.StringIO(), force_terminal=False)
    session.take("Hello?")
    assert session.out.file.getvalue() == evil + "\n"  # a file gets what the model wrote


def test_save_writes_a_dataset_row_once(session, tmp_path):
    session.take("/save")
    assert "nothing to save" in said(session)
    session.voices[0].turns, session.system = list(TURNS), "Be kind."
    session.take("/save")
    assert "/save FILE" in said(session)
    file = tmp_path / "a talk.json"
    session.take(f"/save {file}")
    assert "saved 3 messages" in said(session)
    row = {"messages": [{"role": "system", "content": "Be kind."}, *TURNS]}
    assert json.loads(file.read_text(encoding="utf-8")) == [row]
    session.voices[0].turns = list(TURNS[:1])
    session.take(f"/save {file}")
    assert "not saved" in (text := said(session)) and "exists" in text
    session.take(f"/save {tmp_path}/none/talk.json")
    assert "not saved" in said(session)
    assert json.loads(file.read_text(encoding="utf-8")) == [row]
    assert [item.name for item in tmp_path.iterdir()] == ["a talk.json"]


def answers(session, monkeypatch, *texts):
    """Let the model write these texts, one after the other."""
    from tunesmith.generate import engine

    tokenizer, left = session.voices[0].generator.tokenizer, iter(texts)
    answered = engine.Generator.stream

    def stream(self, messages, **options):
        fixtures_models.scripted(monkeypatch, tokenizer(next(left))["input_ids"])
        seen.append((list(messages), options))
        return answered(self, messages, **options)

    seen = []
    monkeypatch.setattr(engine.Generator, "stream", stream)
    session.sampling = Sampling(max_new_tokens=100, temperature=1.0, seed=3)
    return seen


def test_undo_and_regenerate(session, monkeypatch):
    seen = answers(session, monkeypatch, "one", "two", "three")
    session.take("/undo")
    session.take("/regenerate")
    assert "nothing to take back" in (text := said(session)) and "nothing to answer again" in text
    session.take("A?")
    session.take("B?")
    session.take("/regenerate")
    assert [turn["content"] for turn in session.turns] == ["A?", "one", "B?", "three"]
    assert seen[1][0] == seen[2][0] and seen[1][1]["seed"] != seen[2][1]["seed"] and "drawn" not in said(session)
    session.take("/undo")
    assert [turn["content"] for turn in session.turns] == ["A?", "one"]


def test_params_are_shown_set_and_refused(session):
    session.take("/params temperature=0.5 top_p=0.9 stop=[END]")
    assert session.sampling == Sampling(max_new_tokens=8, temperature=0.5, top_p=0.9, stop=("END",))
    assert "temperature=0.5" in said(session)
    session.take("/params top_q=1")
    assert "not set: top_q" in (text := said(session)) and "Did you mean" in text
    assert session.sampling.top_p == 0.9


def test_messages_of_several_lines(session, monkeypatch):
    answers(session, monkeypatch, "one", "two")
    for line in ("first \\", "second"):
        session.take(line)
    assert not session.goes_on
    for line in ('"""', "/quit", "", "  x", '"""'):
        session.take(line)
    assert [turn["content"] for turn in session.turns[::2]] == ["first \nsecond", "/quit\n\n  x"] and session.open


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
TEMPLATE = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}
{%- for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", "arguments":{{ " " -}}
{{ c.function.arguments | tojson }}}</tool_call>{% endfor -%}
<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_tools_are_called_and_thoughts_are_apart(session, monkeypatch, tmp_path):
    file = tmp_path / "tools.json"
    session.voices = [Voice("tiny", Generator(fixtures_models.tiny_model(), fixtures_models.tiny_tokenizer(TEMPLATE)))]
    session.take(f"/tools {tmp_path}/none.json")
    assert "not taken" in said(session)
    file.write_text('[{"name": "add"}]', encoding="utf-8")
    session.take(f"/tools {file}")
    assert "tool 1 must be like" in said(session)
    file.write_bytes(b"\xff\xfe\x00")
    session.take(f"/tools {file}")
    assert "not taken" in said(session)
    file.write_text(json.dumps([TOOL]), encoding="utf-8")
    session.take(f"/tools {file}")
    assert "tools: add" in said(session)
    call = '<think>Sum.</think><tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    seen = answers(session, monkeypatch, call, "It is 3.")
    session.take("/result 3")
    assert "no tool was called" in said(session)
    session.take("Add.")
    assert "the model called add" in said(session)
    assert session.turns[1]["reasoning_content"] == "Sum."
    assert session.turns[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert "Sum." not in session.out.file.getvalue()  # which a program reads
    session.take("/result 3")
    assert [turn["role"] for turn in session.turns] == ["user", "assistant", "tool", "assistant"]
    assert session.out.file.getvalue().strip() == "It is 3." and seen[0][1]["tools"] == [TOOL]
    session.take(f"/save {tmp_path}/talk.json")
    from tunesmith.formats.messages import Messages

    (row,) = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    sample = Messages().read(row)
    assert sample.tools and sample.branches[0][1].tool_calls and sample.branches[0][1].reasoning == "Sum."


def test_two_models_answer_the_same(folder):
    out, notes = io.StringIO(), io.StringIO()
    lines = io.StringIO("Hello?\n")
    how = Chatting(max_new_tokens=6)
    chat(str(folder), None, how, str(folder), console=Console(file=out), notes=Console(file=notes), lines=lines)
    one = Generator.open(str(folder)).complete([{"role": "user", "content": "Hello?"}], max_new_tokens=6)
    assert out.getvalue() == f"{one}\n{one}\n" and notes.getvalue().count(f"{folder}:") >= 4


def test_saved_jsonl_is_one_line(tmp_path):
    save(tmp_path / "talk.jsonl", TURNS)
    lines = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"messages": TURNS}]
    with pytest.raises(RunError, match="talk.jsonl exists"):
        save(tmp_path / "talk.jsonl", TURNS)


class Terminal:
    """The chat on a terminal of its own, typed into and read as a person would."""

    def __init__(self, folder):
        self.screen, inside = os.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", "chat", str(folder), "--max-new-tokens", "90000"],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            # tests that a shell runs in the background are told to ignore Ctrl-C, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
        )
        os.close(inside)

    def read(self, enough, seconds=60):
        """Whether `enough(text since the last call)` came to be in time."""
        self.seen = ""
        end = time.monotonic() + seconds
        while not enough(self.seen) and time.monotonic() < end:
            if select.select([self.screen], [], [], 0.2)[0]:
                self.seen += os.read(self.screen, 4096).decode(errors="replace")
        return enough(self.seen)

    def type(self, text):
        os.write(self.screen, text.encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path):
    model = fixtures_models.tiny_model(max_position_embeddings=100_000)
    tokenizer = fixtures_models.tiny_tokenizer()
    model.generation_config.eos_token_id = None
    folder = fixtures_models.save_model(tmp_path / "talkative", model, tokenizer)
    terminal = Terminal(folder)
    try:
        assert terminal.read(lambda text: "> " in text), terminal.seen
        terminal.type("Hello?\n")
        assert terminal.read(lambda text: len(text) > 200), terminal.seen
        terminal.interrupt()
        stopped = terminal.read(lambda text: " ..." in text and "tokens," in text and text.endswith("> "))
        assert stopped, terminal.seen
        for _ in range(5):  # Python loses a signal that comes just before readline begins to wait
            terminal.interrupt()
            if terminal.read(lambda text: "/quit leaves" in text and text.endswith("> "), seconds=10):
                break
        assert "/quit leaves" in terminal.seen
        terminal.type("/system\n")
        assert terminal.read(lambda text: "system message: none" in text and text.endswith("> ")), terminal.seen
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.screen)
