import jax
import numpy as np

from regionclip_jax.sharding import barriers


def test_no_process_runs_a_program_before_all_processes_have_compiled_it(monkeypatch):
    """The barrier is reached once for each shape; a single process has no barrier."""
    traced, waited = [], []

    @jax.jit
    def double(x):
        traced.append(x.shape)
        return 2 * x

    assert barriers.compile_barrier(double) is double
    monkeypatch.setattr(barriers.jax, "process_count", lambda: 2)
    monkeypatch.setattr(barriers, "barrier", lambda what: waited.append(len(traced)))
    step = barriers.compile_barrier(double)
    for length in (3, 3, 4, 3):
        np.testing.assert_array_equal(step(np.ones(length)), np.full(length, 2))
    assert waited == [1, 2] and traced == [(3,), (4,)]
