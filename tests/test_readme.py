"""README's lines run as they stand, in an empty directory, with nothing imported before."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_fifteen_lines_run_as_pasted(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.S | re.M)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    one_thread = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=one_thread
    )
    assert done.returncode == 0, done.stderr
    assert "noise floor" in done.stdout
