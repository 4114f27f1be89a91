"""The parts of benchmarks/speed.py: rounds, peers, what is timed (logits, small, heads), bars, report and picture."""
