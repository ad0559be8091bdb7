"""No input is forgotten: the name of each stands in a test beside this file."""

import re
from pathlib import Path


def test_the_name_of_every_input_stands_in_a_test(faults: Path):
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    inputs = [path.name for path in (faults / "files").iterdir() if path.is_dir()]
    inputs += [path.name.split("_")[0] for path in (faults / "model").iterdir() if path.name[:2].isdigit()]
    inputs += [path.name.removesuffix(".gz").removesuffix(".tar") for path in (faults / "hostile").glob("*.gz")]
    assert len(inputs) >= 45
    forgotten = [name for name in inputs if not re.search(rf'"{re.escape(name)}["/_]', tests)]
    assert not forgotten
