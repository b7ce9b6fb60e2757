"""``python -m tools.benchmarks [NAME...]``: run all benchmarks, or the named ones."""

import argparse

import torch

from tools.benchmarks import attention_scores, decoding, false_alarms, onepass, proof, watching

BENCHMARKS = {
    "short": onepass.short,
    "reference": onepass.reference,
    "long": onepass.long,
    "space": onepass.space,
    "decoding": decoding.decoding,
    "own-time": decoding.own_time,
    "attention-scores": attention_scores.attention_scores,
    "proof": proof.proof,
    "false-alarms": false_alarms.false_alarms,
    "watch": watching.watching,
}


def main() -> None:
    """Run the benchmarks, and print each ratio when it is measured."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Ratios of times, with 95 % confidence intervals.")
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
