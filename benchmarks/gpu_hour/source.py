"""Identity of the code: the commit if git is there, and a digest of the files if not."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT

CODE = ("fmscale", "kernels", "launch", "configs", "benchmarks", "tests")
MADE = [("benchmarks", name) for name in ("results", "gpu-wheels", "data")]
"""Folders of generated files."""
KINDS = {".py", ".yaml", ".sh", ".json", ".toml"}
WHEELS = ROOT / "benchmarks" / "gpu-wheels"
"""Packages that `gpu_wheels.sh` collects; git ignores this folder, and it is copied beside the checkout's files."""
MANIFEST = "manifest.json"


def digest(root: Path = ROOT) -> str:
    """SHA-256 over names and bytes of all code."""
    seen = hashlib.sha256()
    for folder in CODE:
        for path in sorted((root / folder).rglob("*")):
            place = path.relative_to(root)
            if path.suffix in KINDS and place.parts[:2] not in MADE and path.is_file():
                seen.update(f"{place}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return seen.hexdigest()


def identity() -> dict[str, Any]:
    """Its commit, if known, `changed` if the code differs from the commit, and the code's digest."""
    code = digest()
    commit = git("rev-parse", "HEAD")
    if commit:
        return {"commit": commit, "changed": bool(git("status", "--porcelain", "--", *CODE)), "code": code}
    manifest = WHEELS / MANIFEST
    if not manifest.is_file():
        return {"commit": "", "changed": False, "code": code}
    told = json.loads(manifest.read_text())
    return {
        "commit": told["commit"],
        "changed": bool(told["changed"]) or told["code"] != code,
        "code": code,
    }


def git(*words: str) -> str:
    """Output of git, or nothing: a copied checkout may lack its .git, and a machine may lack git."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
