"""The thread of a batch: every reader gets the answer that it would get alone, whatever others do or what fails."""

import threading
import time

import pytest

import fixtures_models
from tunesmith.generate.alone import Alone
from tunesmith.generate.asked import Sampling
from tunesmith.generate.engine import Generator
from tunesmith.generate.worker import FAILURES, Failed, Refused, Worker

HELLO = [{"role": "user", "content": "Hello, how are you today?"}]


@pytest.fixture
def generator():
    """One that makes an answer at a time, so that others wait."""
    model = fixtures_models.tiny_model()
    return Generator(model, fixtures_models.tiny_tokenizer(), Alone(model))


def asked(generator, text="Hello", **sampling):
    return generator.request(generator.prompt([{"role": "user", "content": text}], 1), Sampling(**sampling))


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def test_readers_in_many_threads_get_the_answers_that_they_would_get_alone(generator):
    asking = [asked(generator, f"number {n}", max_new_tokens=8 + n, temperature=1.0, seed=n) for n in range(6)]
    alone = [text_of(generator.batch().add(request)) for request in asking]
    found = [""] * len(asking)

    def read(place):
        (reader,) = worker.submit(asking[place])
        found[place] = text_of(reader)

    with Worker(generator.batch()) as worker:
        threads = [threading.Thread(target=read, args=(place,)) for place in range(len(asking))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == alone and len(set(alone)) == len(alone)


def test_a_reader_that_does_not_wait_is_notified(generator):
    came = threading.Semaphore(0)
    pieces = []
    with Worker(generator.batch()) as worker:
        (reader,) = worker.submit(asked(generator, max_new_tokens=5, stop=("\0",)), notify=came.release)
        while not pieces or pieces[-1].finish is None:
            assert came.acquire(timeout=20)
            pieces += reader.ready()
    assert [token.id for piece in pieces for token in piece.tokens]
    assert reader.submitted <= reader.begun
    assert text_of(pieces) == text_of(generator.batch().add(asked(generator, max_new_tokens=5, stop=("\0",))))


def test_a_closed_reader_gives_its_place_up(generator):
    generator.model.generation_config.eos_token_id = None
    generator.tokenizer.eos_token = None
    with Worker(generator.batch()) as worker:
        (first,) = worker.submit(asked(generator, max_new_tokens=10_000))
        (second,) = worker.submit(asked(generator, max_new_tokens=3))
        next(first)
        assert worker.num_running == 1 and worker.num_waiting == 1  # the second waits for the only place
        first.close()
        assert len(list(second)) == 3
        assert list(first) == []
        until(lambda: worker.num_running == 0)
        assert worker.num_waiting == 0


def test_a_full_queue_refuses_all_of_a_request_or_nothing(generator):
    with Worker(generator.batch(), max_waiting=1) as worker:
        release = threading.Event()
        blocking = worker.call(release.wait)
        until(blocking.running)
        readers = worker.submit(asked(generator, max_new_tokens=2))
        with pytest.raises(Refused, match="1 answers are in it"):
            worker.submit(*[asked(generator)] * 2)
        readers += worker.submit(asked(generator, max_new_tokens=2))
        with pytest.raises(Refused, match="2 answers are in it"):
            worker.submit(asked(generator))
        release.set()
        assert all(list(reader) for reader in readers)


class Breaks:
    """What a decoder does, until it shall fail."""

    def __init__(self, decoder, monkeypatch):
        self.failing = False
        inner = decoder.step

        def step(*given):
            if self.failing:
                raise RuntimeError("out of memory")
            return inner(*given)

        monkeypatch.setattr(decoder, "step", step)


def test_what_fails_ends_its_answers_and_the_next_are_made(generator, monkeypatch):
    breaks = Breaks(generator.decoder, monkeypatch)
    request = asked(generator, max_new_tokens=6)
    whole = text_of(generator.batch().add(request))
    with Worker(generator.batch()) as worker:
        breaks.failing = True
        (broken,) = worker.submit(request)
        with pytest.raises(Failed, match="out of memory"):
            list(broken)
        (broken,) = worker.submit(request)
        until(lambda: broken.begun is None and worker.num_running == 0 and worker.failures == 2)
        with pytest.raises(Failed, match="out of memory"):
            broken.ready(), broken.ready()
        assert worker.healthy
        breaks.failing = False
        (good,) = worker.submit(request)
        assert text_of(good) == whole and worker.failures == 0
        breaks.failing = True
        for _ in range(FAILURES):
            with pytest.raises(Failed):
                list(worker.submit(request)[0])
        assert not worker.healthy


def test_one_that_cannot_begin_takes_no_other_with_it(generator, monkeypatch):
    begin = generator.decoder.begin
    monkeypatch.setattr(generator.decoder, "begin", lambda prompt, *a: begin(prompt, *a) if prompt != (7,) else 1 / 0)
    wrong = generator.request(type(generator.prompt(HELLO, 1))((7,), 0), Sampling())
    with Worker(generator.batch()) as worker:
        good, bad, last = worker.submit(asked(generator, max_new_tokens=4), wrong, asked(generator, max_new_tokens=4))
        with pytest.raises(Failed, match="division"):
            list(bad)
        assert list(good) and list(last)


def test_jobs_are_done_between_steps_in_the_thread_of_the_model(generator):
    with Worker(generator.batch()) as worker:
        (reader,) = worker.submit(asked(generator, max_new_tokens=20))
        name = worker.call(lambda: threading.current_thread().name)
        assert name.result(20) == "tunesmith-worker"
        assert isinstance(worker.call(lambda: 1 / 0).exception(20), ZeroDivisionError)
        assert list(reader)


def test_a_stop_finishes_what_runs_and_refuses_what_is_new(generator):
    worker = Worker(generator.batch())
    with worker:
        readers = worker.submit(*[asked(generator, max_new_tokens=30)] * 2)
        worker.stop()
        with pytest.raises(Refused, match="the server stops"):
            worker.submit(asked(generator))
        assert len({text_of(reader) for reader in readers}) == 1 and not worker.healthy


def test_a_stop_that_is_not_waited_for_ends_answers_with_an_error(generator):
    generator.model.generation_config.eos_token_id = None
    generator.tokenizer.eos_token = None
    with Worker(generator.batch()) as worker:
        (reader,) = worker.submit(asked(generator, max_new_tokens=10_000))
        next(reader)
        worker.stop(grace_seconds=0.05)
        with pytest.raises(Failed, match="stopped before"):
            list(reader)
