"""Who started the processes of a run, which of them is the first, and that they are as many as they should be."""

from __future__ import annotations

import datetime
import os
import re

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from vlp.config import ConfigError

# how long processes wait for one that starts late or has something else to do, as a validation of its own
WAIT_LIMIT = datetime.timedelta(minutes=30)


class OtherProcessError(RuntimeError):
    """Another process of the run has ended."""


def cluster_environment(devices: int, num_nodes: int) -> ClusterEnvironment:
    """Lightning's view of what started this process; it knows its rank, and the trainer must be given it.

    Looked for in Lightning's order (`AcceleratorConnector._choose_and_init_cluster_environment`).

    Args:
        devices: processes on each machine.
        num_nodes: machines.

    Raises:
        ConfigError: other than `devices x num_nodes` processes were started.
    """
    found: ClusterEnvironment = LightningEnvironment()
    for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):
        if kind.detect():
            # requeueing is the job script's: a signal stops the run, and the exit code says that it may go on
            found = SLURMEnvironment(auto_requeue=False) if kind is SLURMEnvironment else kind()
            if found.world_size() != devices * num_nodes:
                raise ConfigError(
                    f"{kind.__name__.removesuffix('Environment')} started {found.world_size()} processes, and the"
                    f" configuration wants {devices * num_nodes} (trainer.devices={devices} on each of"
                    f" trainer.num_nodes={num_nodes} machines): make them equal"
                )
            break
    # what a strategy does later: those that start processes themselves know it, others are told
    found.set_world_size(devices * num_nodes)
    found.set_global_rank(found.node_rank() * devices + found.local_rank())
    return found


def is_first(environment: ClusterEnvironment) -> bool:
    """Whether this process is the one that makes folders, writes and talks."""
    return environment.global_rank() == 0


def starts_together(environment: ClusterEnvironment) -> bool:
    """Whether all processes begin at once, as a launcher's do; Lightning starts its own from the first, in `fit`."""
    return environment.creates_processes_externally and not isinstance(environment, LightningEnvironment)


def join(environment: ClusterEnvironment) -> None:
    """Meet all processes that a launcher started, before anything else: from then on, if one ends, the others notice.

    Raises:
        OtherProcessError: one of them did not come in time.
    """
    if not starts_together(environment) or environment.world_size() == 1:
        return
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    try:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            rank=environment.global_rank(),
            world_size=environment.world_size(),
            timeout=WAIT_LIMIT,
        )
    except RuntimeError as error:
        raise told_by_transport(error) or error from error


def wait_for_the_first() -> None:
    """Called by the first process when it has made what the others read, and by the others before they read.

    Raises:
        OtherProcessError: the first has ended.
    """
    if not torch.distributed.is_initialized():
        return
    try:
        torch.distributed.broadcast_object_list([None], src=0, device=torch.device("cpu"))
    except RuntimeError as error:
        raise told_by_transport(error) or error from error


def told_by_transport(error: BaseException) -> OtherProcessError | None:
    """An error of the transport between processes in words; None if it is of something else."""
    told = str(error)
    of_transport = isinstance(error, torch.distributed.DistError) or re.search(
        r"gloo|Connection (closed|reset|refused)|TCPStore|Socket Timeout|recvValue|sendBytes", told, re.IGNORECASE
    )
    if not isinstance(error, RuntimeError) or not of_transport:
        return None
    # without its place in the transport's source
    cause = re.sub(r"^\[\S+\]\s*", "", told.partition("\n")[0]).partition(". ")[0]
    return OtherProcessError(
        f"another process of this run has ended, or does not answer; what it says tells why (here: {cause[:200]})"
    )
