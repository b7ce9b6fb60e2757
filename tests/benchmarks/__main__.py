"""``python -m benchmarks [NAME...]``: all of them, or those that are named."""

import argparse

import torch

from benchmarks import alarms, decoding, onepass, proof, votes, watching

BENCHMARKS = {
    "short": onepass.short,
    "reference": onepass.reference,
    "long": onepass.long,
    "space": onepass.space,
    "decoding": decoding.decoding,
    "votes": votes.votes,
    "proof": proof.proof,
    "alarms": alarms.alarms,
    "watch": watching.watching,
}


def main() -> None:
    """Run the benchmarks and print a line per ratio, as soon as it is there."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Ratios of times, with 95 % intervals.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}: give some of {', '.join(BENCHMARKS)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in names:
        for line in BENCHMARKS[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
