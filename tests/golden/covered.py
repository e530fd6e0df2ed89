"""What reading the golden files, or writing them again, executes of the package: coverage's JSON on standard output.

python tests/golden/covered.py read
python tests/golden/covered.py write
"""

from __future__ import annotations

import sys
from pathlib import Path

import coverage

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]


def read() -> None:
    """Every tensor of every file, on disk or in memory, and the codes of all but the largest."""
    from opq.file.folder_reader import open_reader
    from opq.file.reader import Reader
    from opq.file.writer import Packed

    for path in (p for p in sorted((HERE / "v1").iterdir()) if p.suffix != ".json"):
        with open_reader(path) as reader:
            reader.state_dict()
            for name in reader.names:
                if reader.kind(name) not in ("raw", "scalar") and reader.plan[name].size < 1 << 19:
                    reader.codes(name)
    import make

    with Reader(make.BASED / "new.opq.safetensors", base=make.base()) as reader:
        reader.state_dict()
    with Reader(Packed(((HERE / "v1" / "kinds.opq.safetensors").read_bytes(),), {}, {})) as reader:
        reader.state_dict()


def write() -> None:
    """Every file that is made of a plan and stored tensors, and those made by hand."""
    import make

    for written in make.WRITTEN.values():
        make.written(written)
    for by_hand in make.branches.CRAFTED.values():
        make.by_hand(by_hand)
    make.based()


def main() -> None:
    watching = coverage.Coverage(data_file=None, branch=True, source_pkgs=["opq"], config_file=False)
    watching.start()
    {"read": read, "write": write}[sys.argv[1]]()
    watching.stop()
    watching.json_report(outfile="-")


if __name__ == "__main__":
    main()
