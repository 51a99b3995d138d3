"""What every test needs: one thread per process, no network, no display. Set before torch is imported."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # more threads only wait for each other on matrices this small
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
