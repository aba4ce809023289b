"""Models that answer from a script: in place of a large one, which alone can write instructions."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tunesmith.synthesis.author import Reply

SEEDS = [
    {"instruction": "Sort these words.", "instances": [{"input": "b a", "output": "a b"}], "is_classification": False},
    {"instruction": "Name a fruit.", "instances": [{"input": "", "output": "Pear."}], "is_classification": False},
    {"instruction": "Is it happy?", "instances": [{"input": "Yay!", "output": "yes"}], "is_classification": True},
]
THINGS = "river stone cloud garden engine violin harbour forest window candle mirror bridge".split()
VERBS = "Describe Praise Compare Judge Explain Sketch Judge Measure Defend Judge".split()


def answer(prompt, seed):
    """What the scripted model says: new instructions, a verdict, or examples, as the prompt asks."""
    if prompt.startswith("Come up with a series"):
        drawn = hashlib.sha256(f"{seed}{prompt}".encode()).digest()
        first = f"{VERBS[drawn[0] % 10]} {THINGS[drawn[1] % 12]} {THINGS[drawn[2] % 12]} {drawn[3]} aloud."
        return f" {first}\n4. Sort these words.\n5. Draw a {THINGS[drawn[4] % 12]} for me."
    task = prompt.rstrip("\n").rpartition("Task: ")[2]
    if prompt.startswith("Is the answer"):
        return "Yes" if task.startswith("Judge") else "No"
    if "the label first" in prompt:
        return f"Class label: good\nInput: {task} well\nClass label: bad\nInput: {task} badly"
    return f"Example 1\nInput: {task}\nOutput: Done with {task}\nExample 2\nOutput: b\nExample 3\nOutput:"


class Script:
    """An author of these answers that counts its prompts, and dies at the one with the number `dies_at`."""

    def __init__(self, dies_at=None):
        self.prompts, self.dies_at = [], dies_at

    def write(self, prompt, *, max_new_tokens, temperature, top_p, seed, stop):
        if len(self.prompts) == self.dies_at:
            raise KeyboardInterrupt
        self.prompts.append((prompt, seed, temperature))
        return Reply(answer(prompt, seed), cut=False)


def write_seeds(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in SEEDS))
    return str(path)


@contextmanager
def listening(handler):
    """A server of this handler of requests on this machine: its address."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@contextmanager
def server(replies=()):
    """A server as OpenAI's on this machine: its address, and the requests (headers, body) it got.

    `replies` are its first ones: (HTTP code, headers, content); then it answers from the script.
    """
    waiting, got = list(replies), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((dict(self.headers), body, self.path))
            said = answer(body["messages"][0]["content"], body["seed"])
            choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            ready = (200, {}, json.dumps({"choices": [choice]}))
            code, headers, content = waiting.pop(0) if waiting else ready
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content.encode()))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content.encode())

        def do_GET(self):  # what a redirected request becomes
            got.append((dict(self.headers), None, self.path))
            self.send_error(404)

        def log_message(self, *_):
            pass

    with listening(Handler) as address:
        yield address, got
