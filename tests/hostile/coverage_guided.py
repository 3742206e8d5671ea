"""Coverage-guided fuzzing of one reader: ``python -m tests.hostile.coverage_guided KIND FOLDER -runs=N``.

libFuzzer starts from the valid file in FOLDER and keeps what reaches new lines of the readers. It ends with
an error at the first input that is neither read nor refused as it should be. Of files of ``torch.save`` it
sees the pickle, which is put back into an archive with right sums.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tenfold.untrusted", "tenfold.experiments", "tenfold.nn.adapters"]):
    from tests.hostile.loaders import loaders

from tests.hostile.mutations import pickle_of, repacked
from tests.hostile.test_files import attempt


def main():
    kind, folder, *options = sys.argv[1:]
    valid = loaders()[kind].valid
    packed = loaders()[kind].name.endswith(".pt")
    seed = pickle_of(valid) if packed else valid
    (Path(folder) / "valid").write_bytes(seed)

    def once(raw):
        attempt(kind, repacked(valid, raw) if packed else raw)

    limits = [f"-max_len={2 * len(seed) + 64}", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *limits, *options, folder], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
