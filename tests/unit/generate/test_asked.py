"""What is asked of `chat` and `score` by words and flags: how they answer, and where the model is."""

import io

import pytest
from rich.console import Console

import fixtures_models
from tunesmith.cli.main import main
from tunesmith.errors import RecipeError
from tunesmith.generate import addressed, judge, terminal
from tunesmith.generate.asked import Chatting, Sampling
from tunesmith.generate.chat import Chat
from tunesmith.generate.engine import Generator
from tunesmith.generate.voice import Voice


def test_words_and_flags_say_how_a_chat_answers_and_where(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(terminal, "chat", lambda path, system, how, *rest: asked.append(how) or True)
    for words in (["--device", "cpu"], ["device=cpu", "top_p=0.5", "server.max_retries=0"], []):
        assert main(["chat", "builtin:tiny", *words]) == 0
    by_flag, by_word, plain = asked
    assert plain == Chatting() and by_flag.device == by_word.device == "cpu"
    assert by_word.sampling() == Sampling(max_new_tokens=512, seed=42, top_p=0.5) and by_word.server.max_retries == 0
    assert main(["chat", "builtin:tiny", "--device", "gpu"]) == 1
    assert "error: device: must be 'auto', 'cpu', 'cuda', 'mps' or 'xpu' (it was 'gpu')" in capsys.readouterr().err


def test_an_answer_that_cannot_differ_is_said_to_be_the_same():
    notes = io.StringIO()
    voice = Voice("tiny", Generator(fixtures_models.tiny_model(), fixtures_models.tiny_tokenizer()))
    chat = Chat(
        [voice], Console(file=io.StringIO()), Console(file=notes, width=200), sampling=Sampling(max_new_tokens=4)
    )
    chat.take("Hello?")
    first = chat.turns[-1]
    assert "nothing is drawn" not in notes.getvalue()
    chat.take("/regenerate")
    assert chat.turns[-1] == first and "nothing is drawn at temperature 0" in notes.getvalue()


def test_a_device_is_handed_to_what_loads_the_models_of_a_chat(monkeypatch):
    def opened(path, device):
        raise RecipeError(f"{path} on {device}")

    monkeypatch.setattr(addressed.Generator, "open", opened)
    with pytest.raises(RecipeError, match="^a-model on cpu$"):
        terminal.chat("a-model", how=Chatting(device="cpu"), notes=Console(file=io.StringIO()))


def test_score_is_told_where_its_models_are(monkeypatch):
    asked = []
    for kind in (judge.Judge, addressed.Generator):
        monkeypatch.setattr(kind, "open", lambda path, device: asked.append((path, device)))
    monkeypatch.setattr(judge, "score", lambda opened, file: iter(()))
    monkeypatch.setattr(judge, "sampled", lambda *given, **options: iter(()))
    main(["score", "run", "rows", "--device", "cpu"])
    main(["score", "run", "rows", "--device", "cpu", "--sample", "2", "--model", "other"])
    assert asked == [("run", "cpu"), ("run", "cpu"), ("other", "cpu")]
