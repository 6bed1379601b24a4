"""The ratios that muxfer publishes, measured: two contestants interleaved in one run, a median and its spread.

A figure alone means nothing on a shared machine, so each has a contestant beside it. Figures that can't be measured
here are listed as not measured, never guessed.

`python -m benchmarks` writes docs/benchmarks.md and docs/benchmarks.json.
"""
