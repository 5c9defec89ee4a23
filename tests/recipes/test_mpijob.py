"""The example for the Kubernetes MPI operator starts as many ranks as its recipe has."""

from __future__ import annotations

from pathlib import Path

import yaml

from paddock.recipes.compose import compose
from paddock.recipes.tracing import mesh_of

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "mpijob.yaml"


def test_the_operator_starts_the_ranks_that_the_recipe_wants() -> None:
    job, service = yaml.safe_load_all(EXAMPLE.read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    spec = job["spec"]
    launcher, worker = spec["mpiReplicaSpecs"]["Launcher"], spec["mpiReplicaSpecs"]["Worker"]
    (of_launcher,) = launcher["template"]["spec"]["containers"]
    (of_worker,) = worker["template"]["spec"]["containers"]

    mpirun, dash_n, ranks, paddock, serve, name, *settings = of_launcher["command"]
    assert (mpirun, dash_n, paddock, serve) == ("mpirun", "-n", "paddock", "serve")
    recipe = compose(name, settings).recipe
    assert int(ranks) == mesh_of(recipe).size == worker["replicas"] * spec["slotsPerWorker"]

    assert of_launcher["image"] == of_worker["image"]  # the same release everywhere
    home = {entry["name"]: entry.get("value") for entry in of_launcher["env"]}["PADDOCK_HOME"]
    assert [mount["mountPath"] for mount in of_worker["volumeMounts"]] == [home]
    assert recipe.server.host == "0.0.0.0"
    assert [port["port"] for port in service["spec"]["ports"]] == [recipe.server.port]
    assert service["spec"]["selector"]["training.kubeflow.org/job-name"] == job["metadata"]["name"]
