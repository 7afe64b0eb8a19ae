"""Tasks of Ray, each in a new process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxdist.cluster.options import RayOptions
from jaxdist.cluster.ray_local import check_resources, ray_cluster
from jaxdist.cluster.tasks import Outcome


class RayTasks:
    """An `Engine`, on a cluster that is connected.

    Args:
        ray: the module.
        function: what a task calls with its data; it returns an `Outcome` as a dict.
        options: what a task needs.
    """

    def __init__(self, ray: Any, function: Callable[[dict[str, Any]], dict[str, Any]], options: RayOptions) -> None:
        self.ray = ray
        # A new process for each task: the devices of JAX are set once in a process. Lost tasks are the caller's.
        settings = {'num_cpus': options.cpus, 'num_gpus': options.gpus, 'max_calls': 1, 'max_retries': 0}
        self.function = ray.remote(**settings)(function)

    def start(self, tasks: Sequence[dict[str, Any]]) -> list[Any]:
        """See `Engine`."""
        return [self.function.remote(task) for task in tasks]

    def outcome(self, handle: Any) -> Outcome | None:
        """See `Engine`."""
        errors = self.ray.exceptions
        if not self.ray.wait([handle], timeout=0)[0]:
            return None
        try:
            return Outcome(**self.ray.get(handle))
        except errors.TaskCancelledError:
            return Outcome('stopped')
        except errors.RayTaskError as error:  # the function raises nothing: it cannot be imported there
            return Outcome('failed', f'a machine of the cluster cannot run it: {str(error).splitlines()[-1]}', 1)
        except errors.RayError as error:
            return Outcome('lost', str(error).partition('. ')[0])

    def stop(self, handles: Sequence[Any]) -> None:
        """See `Engine`. Ray interrupts the process as Ctrl-C does."""
        for handle in handles:
            self.ray.cancel(handle, force=False)


@contextmanager
def ray_tasks(function: Callable[[dict[str, Any]], dict[str, Any]], options: RayOptions) -> Iterator[RayTasks]:
    """An engine on a Ray cluster, which is started if there is none.

    Raises:
        InputError: there is no cluster at the address, or this machine has too few processors or GPUs for a task.
        MissingExtraError: Ray is not installed.

    >>> with ray_tasks(dict, RayOptions(address='head')):
    ...     pass
    Traceback (most recent call last):
    jaxdist.InputError: 'head' is no address of a Ray cluster: give HOST:PORT, such as 10.0.0.1:6379, or auto
    """
    with ray_cluster(options.address) as ray:
        check_resources(ray.nodes(), options)
        yield RayTasks(ray, function, options)
