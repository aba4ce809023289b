"""What must not be in a file that is committed: machine paths, registries' hosts, secrets, large files."""

import re
import subprocess
from pathlib import Path

MOST_BYTES = 10 * 1024 * 1024

# A bracket in each keeps this file from matching itself.
FORBIDDEN = {
    "a path of one machine": re.compile(
        r"(?<![\w.~])/(?:[w]ork|[r]oot|tmp/[w]|home/[a-z]\w*|Users/[a-z]\w*)/|[f]ile:///"
    ),
    "a folder outside the repository": re.compile(r"\.\./[s]hared\b|(?<!\w)[s]hared/(?:design|data|tools)\b"),
    "a registry's host or index": re.compile(
        r"[p]ypi\.org|[p]ythonhosted\.org|download\.[p]ytorch\.org|--(?:extra-)?[i]ndex-url|--[f]ind-links"
    ),
    "a secret": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|AKIA[0-9A-Z]{16}"
        r"|xox[abprs]-[A-Za-z0-9-]{10,})|-----BEGIN [A-Z ]*[P]RIVATE KEY-----"
    ),
}


def check(root: Path) -> list[str]:
    """Forbidden text and large files in what git tracks or would add."""
    found = []
    for path in _files(root):
        place = path.relative_to(root)
        content = path.read_bytes()
        if len(content) > MOST_BYTES:
            found.append(f"{place}: {len(content):,} bytes, and at most {MOST_BYTES:,} are allowed")
        if b"\0" in content[:8192]:  # not text, as git decides it
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
            for what, pattern in FORBIDDEN.items():
                if match := pattern.search(line):
                    found.append(f"{place}:{number}: {what}: {match[0]}")
    return found


def _files(root: Path) -> list[Path]:
    """The files of a git work tree, ignored ones left out; of any other folder, all that are not hidden."""
    if not (root / ".git").exists():
        found = (path for path in root.rglob("*") if path.is_file())
        return sorted(path for path in found if not path.relative_to(root).parts[0].startswith("."))
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({root / name for name in names if name and (root / name).is_file()})
