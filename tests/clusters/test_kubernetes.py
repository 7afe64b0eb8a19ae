"""The JobSet for Kubernetes: its fields are those of the API, and it ends on the batch script's codes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro
import yaml

from jaxdist.cli.train import Train
from jaxdist.cluster.exits import EXITS

FILE = Path(__file__).parents[2] / 'scripts' / 'kubernetes' / 'jobset.yaml'
RETRY = tuple(code for code, exit in EXITS.items() if exit.retry)
NO_RETRY = tuple(code for code, exit in EXITS.items() if code and not exit.retry)

# The fields that the file may have, as in the API of JobSet v1alpha2, and of Kubernetes' batch/v1 and core/v1: a server
# ignores one that is misspelt. `[...]` is a list, `dict` any mapping.
CONTAINER = {
    'name': str,
    'image': str,
    'command': [str],
    'resources': {'requests': dict, 'limits': dict},
    'volumeMounts': [{'name': str, 'mountPath': str}],
}
POD = {
    'restartPolicy': str,
    'terminationGracePeriodSeconds': int,
    'nodeSelector': dict,
    'containers': [CONTAINER],
    'volumes': [{'name': str, 'persistentVolumeClaim': {'claimName': str}}],
}
EXIT_CODES = {'containerName': str, 'operator': str, 'values': [int]}
JOB = {
    'completionMode': str,
    'completions': int,
    'parallelism': int,
    'backoffLimit': int,
    'podFailurePolicy': {'rules': [{'action': str, 'onExitCodes': EXIT_CODES}]},
    'template': {'spec': POD},
}
FAILURE_RULE = {'name': str, 'action': str, 'onJobFailureReasons': [str]}
JOBSET = {
    'apiVersion': str,
    'kind': str,
    'metadata': {'name': str},
    'spec': {
        'failurePolicy': {'maxRestarts': int, 'rules': [FAILURE_RULE]},
        'replicatedJobs': [{'name': str, 'replicas': int, 'template': {'spec': JOB}}],
    },
}


def problems(value: Any, expected: Any, path: str = '') -> Iterator[str]:
    """Where a value has other fields or types than expected."""
    if isinstance(expected, type):
        if type(value) is not expected:
            yield f'{path} is {value!r}, not {expected.__name__}'
    elif isinstance(expected, list):
        for number, each in enumerate(value):
            yield from problems(each, expected[0], f'{path}[{number}]')
    else:
        for name, each in value.items():
            where = f'{path}.{name}'
            yield from problems(each, expected[name], where) if name in expected else [f'{where} is not a field']


def jobset() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def job() -> dict[str, Any]:
    (replicated,) = jobset()['spec']['replicatedJobs']
    return replicated['template']['spec']


def container() -> dict[str, Any]:
    (only,) = job()['template']['spec']['containers']
    return only


def test_the_fields_are_those_of_the_api() -> None:
    assert list(problems(jobset(), JOBSET)) == []
    wrong = {'spec': {'failurePolicy': {'maxRestart': 3}, 'replicatedJobs': [{'replicas': '1'}]}}
    found = ['.spec.failurePolicy.maxRestart is not a field', ".spec.replicatedJobs[0].replicas is '1', not int"]
    assert list(problems(wrong, JOBSET)) == found


def test_all_processes_start_again_unless_the_exit_status_is_a_mistake() -> None:
    policy, rules = jobset()['spec']['failurePolicy'], job()['podFailurePolicy']['rules']
    assert policy['maxRestarts'] == 20
    (rule,) = policy['rules']
    assert (rule['action'], rule['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])
    (codes,) = (rule['onExitCodes'] for rule in rules if rule['action'] == 'FailJob')
    assert (codes['operator'], codes['containerName']) == ('In', container()['name'])
    assert tuple(codes['values']) == NO_RETRY
    assert not {*codes['values']} & {*RETRY}
    assert job()['backoffLimit'] == 0
    assert job()['template']['spec']['restartPolicy'] == 'Never'  # which podFailurePolicy asks for


def test_hosts_and_names_agree() -> None:
    """Pods are named JOBSET-JOB-0-INDEX, in a domain with the name of the JobSet."""
    command = container()['command']
    name, replicated = jobset()['metadata']['name'], jobset()['spec']['replicatedJobs'][0]['name']
    option = lambda word: command[command.index(word) + 1]  # noqa: E731
    assert option('--cluster.coordinator').split(':')[0] == f'{name}-{replicated}-0-0.{name}'
    assert job()['completionMode'] == 'Indexed'
    assert job()['completions'] == job()['parallelism'] == int(option('--cluster.processes'))
    assert option('--cluster.process') == '$(JOB_COMPLETION_INDEX)'
    mounts = {mount['name']: mount['mountPath'] for mount in container()['volumeMounts']}
    assert option('--run').startswith(mounts['runs'] + '/')
    assert [volume['name'] for volume in job()['template']['spec']['volumes']] == ['runs']


def test_the_command_has_the_options_of_jaxdist() -> None:
    program, train, config, *options = container()['command']
    assert (program, train) == ('jaxdist', 'train')
    assert (FILE.parents[2] / config).is_file()
    chosen = tyro.cli(Train, args=[word.replace('$(JOB_COMPLETION_INDEX)', '1') for word in options])
    assert (chosen.cluster.processes, chosen.cluster.process, chosen.experiment.steps) == (2, 1, 1000)
