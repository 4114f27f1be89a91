"""Importing the NumPy front end is cheap, and every public name is there."""

import subprocess
import sys

import lastlayer

HEAVY = ["torch", "rich", "scipy", "mpmath", "ml_dtypes", "hypothesis", "tokenizers", "sklearn", "jax"]


def test_importing_imports_numpy_and_nothing_heavier():
    code = f"import sys, lastlayer; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_using_it_imports_nothing_heavier_either():
    code = (
        "import sys, numpy as np, lastlayer as ll;"
        "z = np.zeros((2, 3), np.float32);"
        "ll.softmax(z); ll.cross_entropy_value_and_grad(z, [0, 1]); ll.entropy(logits=z); ll.categorical(z, rng=0);"
        "ll.multinomial(np.ones(3), 2, rng=0);"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names():
    assert sorted(lastlayer.__all__) == lastlayer.__all__
    assert all(hasattr(lastlayer, name) for name in lastlayer.__all__)
    for module in (lastlayer.functional, lastlayer.information, lastlayer.sampling):
        assert all(getattr(module, name).__doc__ for name in module.__all__)


def test_one_name_has_one_meaning():
    assert lastlayer.cross_entropy is lastlayer.functional.cross_entropy
    assert lastlayer.information.cross_entropy is not lastlayer.cross_entropy
