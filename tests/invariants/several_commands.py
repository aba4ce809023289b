"""Some command lines, one after the other in this process: `python several_commands.py FILE`, a JSON list of them."""

import json
import sys
from pathlib import Path

from tunesmith.cli.main import main

for words in json.loads(Path(sys.argv[1]).read_text()):
    code = main(words)
    if code:
        sys.exit(code)
