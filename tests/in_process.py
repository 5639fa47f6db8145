"""Peers as communicators of one process, each call in a thread of its own."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from pccl import Communicator, MasterNode

PATIENCE = 60.0  # seconds that nothing here comes near, unless it hangs


def in_threads(*functions: Callable[[], object]) -> list[object]:
    """Run all at once, and return what they return; raises what one raised."""
    results: list[object] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            results[i] = functions[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a call hangs"
    if errors:
        raise errors[0]
    return results


@contextmanager
def group_of(master: MasterNode, size: int, **options: object) -> Iterator[list[Communicator]]:
    """`size` communicators that are accepted, in order of their joining."""
    with ExitStack() as stack:
        accepted: list[Communicator] = []
        for _ in range(size):
            comm = Communicator(master.address, **options)  # type: ignore[arg-type]
            stack.callback(comm.close)
            newcomer = threading.Thread(target=comm.connect, daemon=True)
            newcomer.start()
            deadline = time.monotonic() + PATIENCE
            while newcomer.is_alive():
                assert time.monotonic() < deadline, "nobody lets the newcomer in"
                if accepted and all(in_threads(*(peer.are_peers_pending for peer in accepted))):
                    in_threads(*(peer.update_topology for peer in accepted))
                    newcomer.join(PATIENCE)  # it is one of those who have to vote now
                newcomer.join(0.01)
            accepted.append(comm)
        yield accepted
