"""What breaks a group, and what the ranks are told."""

from __future__ import annotations

import os
import pickle
import re
import resource
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinycluster.parallel.communicator import CollectiveError
from tinycluster.parallel.local import LocalGroup
from tinycluster.parallel.region import RegionShape
from tinycluster.parallel.shared_memory import SharedMemoryCommunicator

DEADLINE_S = 4.0
"""Waited for to its end, and enough for a busy machine to start all ranks before."""
KINDS = ["local", "shared_memory", "tcp", "hierarchical"]


@pytest.mark.parametrize("kind", ["local", "shared_memory"])
def test_a_deadline_names_every_rank_that_did_not_come(kind: str, groups: Any, in_threads: Any) -> None:
    communicators = groups.open(kind, 4, timeout_s=DEADLINE_S)
    for future in in_threads([communicators[0], communicators[2]], lambda communicator: communicator.barrier()):
        with pytest.raises(CollectiveError, match=rf"rank [02] waited {DEADLINE_S:g} s in barrier for rank 1, 3"):
            future.result()


@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
def test_a_receive_without_a_send_ends_at_the_deadline(kind: str, groups: Any) -> None:
    communicator = groups.open(kind, 2, timeout_s=DEADLINE_S)[1]
    with pytest.raises(CollectiveError, match=r"rank 1 waited .*rank 0"):
        communicator.recv(np.empty(3, np.float32), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_abort_ends_the_waits_of_all_ranks_and_every_later_call(kind: str, groups: Any, in_threads: Any) -> None:
    communicators = groups.open(kind, 4)

    def body(communicator: Any) -> None:
        if communicator.rank == 3:
            communicator.abort()
        communicator.barrier()

    for future in in_threads(communicators, body):
        assert isinstance(future.exception(), CollectiveError)
    with pytest.raises(CollectiveError):
        communicators[0].all_reduce(np.zeros(3, np.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_closes_ends_the_waits_for_it(kind: str, groups: Any, in_threads: Any) -> None:
    def body(communicator: Any) -> None:
        if communicator.rank == 1:
            communicator.close()
        else:
            communicator.all_reduce(np.zeros(576, np.int64))

    outcomes = in_threads(groups.open(kind, 3), body)
    assert outcomes[1].exception() is None
    assert all(isinstance(outcomes[rank].exception(), CollectiveError) for rank in (0, 2))


@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
def test_a_message_arrives_though_its_sender_has_left(kind: str, groups: Any) -> None:
    first, second = groups.open(kind, 2)
    first.send(np.arange(1000, dtype=np.float32), 1)
    first.close()
    received = np.empty(1000, np.float32)
    second.recv(received, 0)
    np.testing.assert_array_equal(received, np.arange(1000))
    with pytest.raises(CollectiveError, match="rank 0"):
        second.recv(received, 0)


@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
def test_a_closed_communicator_refuses_calls(kind: str, groups: Any) -> None:
    communicator = groups.open(kind, 2)[0]
    communicator.close()
    with pytest.raises(CollectiveError, match="rank 0 has closed"):
        communicator.send(np.zeros(1, np.int64), 1)


@pytest.mark.parametrize("kind", ["local", "shared_memory"])
def test_ranks_that_call_different_operations_are_told_apart(kind: str, groups: Any, in_threads: Any) -> None:
    def body(communicator: Any) -> None:
        if communicator.rank == 0:
            communicator.all_reduce(np.zeros(3, np.int64))
        else:
            communicator.broadcast(np.zeros(8, np.int64), 0)

    for future in in_threads(groups.open(kind, 2), body):
        with pytest.raises(CollectiveError, match=r"all_reduce of 24 bytes|broadcast of 64 bytes"):
            future.result()


@pytest.mark.parametrize(
    ("n", "operation", "difference"),
    [
        (3, "broadcast", "call broadcast instead of all_reduce|call all_reduce instead of broadcast"),
        (4, "all_reduce", "payload bytes 32 instead of 24|payload bytes 24 instead of 32"),
    ],
)
def test_over_tcp_the_first_wrong_frame_is_refused(
    n: int, operation: str, difference: str, groups: Any, in_threads: Any
) -> None:
    def body(communicator: Any) -> None:
        if communicator.rank == 0 or operation == "all_reduce":
            communicator.all_reduce(np.zeros(n if communicator.rank else 3, np.int64))
        else:
            communicator.broadcast(np.zeros(3, np.int64), 1)

    outcomes = [future.exception() for future in in_threads(groups.open("tcp", 2), body)]
    assert any(re.search(difference, str(outcome)) for outcome in outcomes), outcomes
    assert isinstance(outcomes[0], CollectiveError)


@pytest.mark.parametrize("kind", ["local", "shared_memory", "tcp"])
def test_a_message_of_another_length_is_refused(kind: str, groups: Any) -> None:
    first, second = groups.open(kind, 2)
    first.send(np.zeros(4, np.float32), 1)
    with pytest.raises(CollectiveError, match="16"):
        second.recv(np.empty(3, np.float32), 0)


def test_each_rank_of_a_local_group_is_given_out_once() -> None:
    group = LocalGroup(2)
    group.communicator(0)
    with pytest.raises(CollectiveError, match="rank 0 is already taken"):
        group.communicator(0)
    with pytest.raises(ValueError, match="rank must be smaller than size"):
        group.communicator(2)


@pytest.mark.parametrize("field", ["size", "slot_bytes", "mailbox_bytes"])
def test_a_region_without_room_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} of a group must be positive, got 0"):
        RegionShape(**{"size": 2, field: 0})


def test_a_rank_that_never_attaches_is_named_and_the_file_is_gone() -> None:
    name = secrets.token_hex(8)
    with pytest.raises(CollectiveError, match="in attach for rank 1"):
        SharedMemoryCommunicator(name, 0, 2, timeout_s=0.2)
    assert not Path(f"/dev/shm/tinycluster-{name}").exists()


def test_a_missing_creator_is_waited_for_only_until_the_deadline() -> None:
    with pytest.raises(CollectiveError, match="rank 0 did not create"):
        SharedMemoryCommunicator(secrets.token_hex(8), 1, 2, timeout_s=0.1)


@pytest.mark.parametrize(
    ("difference", "message"), [({"epoch": 6}, "epoch differs"), ({"slot_bytes": 4096}, "owner, kind or size differs")]
)
def test_a_rank_of_another_start_is_refused(difference: Any, message: str, in_threads: Any) -> None:
    name = secrets.token_hex(8)

    def body(rank: int) -> None:
        options = {"epoch": 5} | (difference if rank else {})
        SharedMemoryCommunicator(name, rank, 2, timeout_s=DEADLINE_S, **options)

    creator, stranger = in_threads(range(2), body)
    assert isinstance(creator.exception(), CollectiveError)
    with pytest.raises(CollectiveError, match=message):
        stranger.result()
    assert not Path(f"/dev/shm/tinycluster-{name}").exists()


def test_the_file_is_for_its_owner_only_while_it_has_a_name(in_threads: Any) -> None:
    name = secrets.token_hex(8)
    path = Path(f"/dev/shm/tinycluster-{name}")

    def body(rank: int) -> int:
        if rank == 0:
            SharedMemoryCommunicator(name, 0, 2, timeout_s=60.0).close()
            return 0
        while not path.exists():
            os.sched_yield()
        mode = path.stat().st_mode & 0o777
        SharedMemoryCommunicator(name, 1, 2, timeout_s=60.0).close()
        return mode

    assert in_threads(range(2), body)[1].result() == 0o600


@pytest.mark.parametrize("name", ["", "../x", "a/b", "x" * 300, "nul\0"])
def test_a_name_that_could_leave_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a shared-memory group must be"):
        SharedMemoryCommunicator(name, 0, 1, timeout_s=1.0)


def test_memory_that_cannot_be_had_is_a_sentence_and_leaves_nothing() -> None:
    name = secrets.token_hex(8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(CollectiveError, match=r"cannot create \d+ bytes of shared memory at .*: File too large"):
            SharedMemoryCommunicator(name, 0, 2, timeout_s=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not Path(f"/dev/shm/tinycluster-{name}").exists()


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(CollectiveError("rank 2 died")))
    assert (type(error), str(error)) == (CollectiveError, "rank 2 died")
