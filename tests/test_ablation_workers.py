"""Each worker has a core or a device of its own."""

import jax
import pytest

from diffax.ablation.workers import worker_environments


def on(monkeypatch, platform, count, visible=None):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_cpu_workers_have_one_thread(monkeypatch):
    on(monkeypatch, "cpu", 8)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert len(worker_environments(None, 9)) == 4
    assert len(worker_environments(None, 3)) == 3
    assert worker_environments(1, 9) == worker_environments(None, 1) == [{}]


def test_cpu_workers_keep_the_users_own_flags(monkeypatch):
    on(monkeypatch, "cpu", 8)
    for own in ("", "--xla_dump_to=here"):
        monkeypatch.setenv("XLA_FLAGS", own)
        flags = {e["XLA_FLAGS"] for e in worker_environments(2, 9)}
        assert flags == {f"{own} --xla_cpu_multi_thread_eigen=false".strip()}


@pytest.mark.parametrize("visible, names", [(None, "012"), ("5,6,7", "567")])
def test_each_gpu_has_a_worker(visible, names, monkeypatch):
    on(monkeypatch, "gpu", 3, visible)
    devices = [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(None, 9)]
    assert devices == list(names)
    assert len(worker_environments(None, 2)) == 2
    more = worker_environments(4, 9)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in more] == [*names, names[0]]
    assert {e["XLA_PYTHON_CLIENT_PREALLOCATE"] for e in more} == {"false"}


def test_a_tpu_belongs_to_one_process(monkeypatch):
    on(monkeypatch, "tpu", 4)
    assert worker_environments(None, 9) == worker_environments(1, 9) == [{}]
    with pytest.raises(ValueError, match="workers is 2, but a host's TPU belongs to one process"):
        worker_environments(2, 9)


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers is 0; at least 1"):
        worker_environments(0, 9)
