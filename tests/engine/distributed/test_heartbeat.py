"""Which rank is found to have failed, by the heartbeats of all (test_failures.py has the same with real processes)."""

from atlasvi.engine.distributed.heartbeat import Heartbeat, find_failed_rank


def heartbeat(rank: int, received: float = 100.0, changed: float = 100.0, waiting: bool = False) -> Heartbeat:
    return Heartbeat(rank, "node", 7, 3, "step 4", waiting, 0.0, received, changed)


def test_all_is_well_while_all_send_heartbeats_and_some_begin_something_new():
    heartbeats = [heartbeat(0, waiting=True, changed=50), heartbeat(1)]
    assert find_failed_rank(heartbeats, 101, timeout_s=10, silence_s=10) is None


def test_the_rank_that_others_wait_for_hangs_and_waiting_is_no_fault():
    heartbeats = [
        heartbeat(0, waiting=True, changed=50),
        heartbeat(1, changed=60),
        heartbeat(2, waiting=True, changed=40),
    ]
    sentence = "rank 1 (process 7 on node) hangs: it has been in step 4 for 41 s"
    assert find_failed_rank(heartbeats, 101, 10, 10) == (1, sentence)


def test_a_rank_that_sends_nothing_is_named_before_one_that_does_nothing_new():
    found = find_failed_rank([heartbeat(0, changed=50), heartbeat(1, received=80)], 101, 10, 10)
    assert found is not None
    assert found[1].startswith("rank 1 (process 7 on node) has not been heard of for 21 s")


def test_where_all_wait_for_each_other_the_network_is_named():
    heartbeats = [heartbeat(rank, waiting=True, changed=50) for rank in range(3)]
    found = find_failed_rank(heartbeats, 101, 10, 10)
    assert found is not None
    assert "the network between them has failed" in found[1]
