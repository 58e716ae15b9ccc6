import os
import subprocess
import sys

import pytest
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import Pooling
from tests.engine.local.checkpoints import tiny_bert
from tests.engine.local.sentence_folders import saved, transformer

import nimbed
from nimbed.errors import ConfigurationError
from nimbed_ray import Actors, Machine, actors_for, cluster


@pytest.mark.parametrize("cores", [1, 2, 3, 16, 96])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_actors_use_every_core_and_leave_a_cpu_for_reading(cores, threads):
    if threads > cores:
        with pytest.raises(ConfigurationError, match=f"no machine of the cluster has {threads}"):
            actors_for([Machine(cpus=cores)], on_gpus=False, threads=threads)
        return
    actors = actors_for([Machine(cpus=cores)] * 2, on_gpus=False, threads=threads)
    each = actors.count // 2
    assert each * threads <= cores < (each + 1) * threads
    assert each * actors.cpus <= cores - 1 + 1e-9
    assert actors.cpus <= threads
    assert (actors.threads, actors.gpus) == (threads, 0)


def test_machines_of_different_sizes_are_filled_each():
    machines = [Machine(cpus=2), Machine(cpus=8), Machine(cpus=1)]
    actors = actors_for(machines, on_gpus=False, threads=2)
    assert actors.count == 1 + 4
    assert actors.cpus <= 1  # two on the big one and its reading fit, and one on the small one


def test_a_gpu_has_one_actor_and_its_share_of_the_cores():
    machines = [Machine(cpus=16, gpus=4), Machine(cpus=64)]
    assert actors_for(machines, on_gpus=True) == Actors(count=4, threads=4, cpus=1, gpus=1)
    few = actors_for(machines, on_gpus=True, count=2, threads=1)
    assert few == Actors(count=2, threads=1, cpus=1, gpus=1)


def test_more_than_there_is_room_for_is_refused():
    with pytest.raises(ConfigurationError, match="5 actors were asked for.*room for 4"):
        actors_for([Machine(cpus=4)], on_gpus=False, count=5)
    with pytest.raises(ConfigurationError, match="no machine of the cluster has a GPU"):
        actors_for([Machine(cpus=4)], on_gpus=True)
    with pytest.raises(ConfigurationError, match="at least 1; got 0 actors"):
        actors_for([Machine(cpus=4)], on_gpus=False, count=0)


def test_threads_are_limited_before_and_after_torch_is_there():
    script = (
        "from nimbed_ray.embed_texts import limit_threads\n"
        "limit_threads(1)\n"
        "import torch\n"
        "print(torch.get_num_threads())\n"
        "limit_threads(2)\n"
        "print(torch.get_num_threads())\n"
        "limit_threads(None)\n"
        "print(torch.get_num_threads())"
    )
    clean = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean, capture_output=True, timeout=60, check=True
    )
    assert done.stdout.split() == [b"1", b"2", b"2"]


def test_whatever_runs_here_gets_the_gpus_that_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "machines", lambda: [Machine(cpus=8, gpus=1)])
    network = tiny_bert(tmp_path / "network")
    ends = Router({"query": [Dense(32, 8)], "document": [Dense(32, 8)]})
    saved(tmp_path / "routed", [transformer(network), Pooling(32), ends, Normalize()])
    embedders = (nimbed.load(str(network)), nimbed.load(str(tmp_path / "routed")))
    for embedder, gpus in ((embedders[0], 1), (embedders[1], 1), (nimbed.FakeEmbedder(), 0)):
        assert cluster.plan_actors(embedder, count=None, threads=None, gpus=None).gpus == gpus
