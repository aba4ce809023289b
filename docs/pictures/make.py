"""The pictures of the README, made by the program itself: what it writes to a terminal, and a run's loss.png.

python docs/pictures/make.py                    run.svg, preview.svg and loss.png beside this file
python docs/pictures/make.py --recipe my.yaml   of another recipe, whose paths count from a temporary folder
"""

import argparse
import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 100  # columns
TERMINAL = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(WIDTH), "LINES": "60"}
# What a live display writes beside text: go up, erase a line, go to a line's start, show or hide the cursor.
CONTROL = re.compile(r"\x1b\[(\d*)A|(\x1b\[2K)|(\r)|\x1b\[\?25[lh]")
UNSEEN = {code: None for code in range(0x20) if chr(code) not in "\n\r\x1b"}  # a picture cannot hold them
# rich's pictures load a font from the network; without these rules the reader's own monospaced one is taken.
FONTS = re.compile(r"@font-face \{.*?\n    \}\n\s*", re.DOTALL)


def main() -> None:
    """Preview and train in a temporary folder, and keep the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="quickstart", help="shipped recipe's name or file (quickstart)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the pictures")
    asked = parser.parse_args()
    file = Path(asked.recipe)
    recipe, out = str(file.resolve()) if file.is_file() else asked.recipe, asked.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        draw(out / "preview.svg", ["preview", recipe, "--rows", "3"], folder)
        draw(out / "run.svg", ["train", recipe], folder)
        (picture,) = Path(folder).glob("runs/*/loss.png")
        shutil.copyfile(picture, out / "loss.png")


def draw(file: Path, words: list[str], folder: str) -> None:
    """Run a command in a terminal of its own, and write what the terminal shows in the end."""
    shown = ["tunesmith", *(Path(word).name for word in words)]
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    console.print(Text(f"$ {' '.join(shown)}\n", "bold"))
    for line in screen(output([sys.executable, "-m", "tunesmith", *words], folder)):
        console.print(Text.from_ansi(line, overflow="fold"))
    picture = console.export_svg(title=" ".join(shown), unique_id=file.stem)
    file.write_text(FONTS.sub("", picture), encoding="utf-8")


def output(command: list[str], folder: str) -> str:
    """What a command writes to a terminal. Raises CalledProcessError when it fails."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, **TERMINAL}
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = bytearray()
        while True:
            try:
                written += os.read(ours, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
    os.close(ours)
    text = written.decode().replace("\r\n", "\n").translate(UNSEEN)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, text)
    return text


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after all of a text, with their colours."""
    lines = [""]
    row = 0
    for number, part in enumerate(text.split("\n")):
        row += number > 0
        lines += [""] * (row + 1 - len(lines))
        start = 0
        for found in CONTROL.finditer(part):
            lines[row] += part[start : found.start()]
            start = found.end()
            if found[1] is not None:
                row -= int(found[1] or 1)
            elif found[2]:
                lines[row] = ""
        lines[row] += part[start:]
    return lines if lines[-1] else lines[:-1]


if __name__ == "__main__":
    main()
