"""README's lines run as they stand, in an empty directory, with nothing imported before."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def fifteen_lines():
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.S | re.M)
    return code


def test_they_are_fifteen_and_run_in_a_tenth_of_their_steps(tmp_path):
    code = fifteen_lines()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    code = re.sub(r"(num_steps|num_samples|warmup_steps)=(\d+)0\b", r"\1=\2", code)
    run(code.replace("num_chains=2", "num_chains=2, max_seconds=2"), tmp_path)


def test_the_fifteen_lines_run_as_pasted(tmp_path):
    run(fifteen_lines(), tmp_path)


def run(code, tmp_path):
    one_thread = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=one_thread
    )
    assert done.returncode == 0, done.stderr
    assert "noise floor" in done.stdout
