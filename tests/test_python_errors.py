"""Exceptions carry the result and a sentence, and fit what programs catch already."""

import pickle

import pytest

import pccl
from pccl import PCCLError, Result
from pccl._errors import error_for

CLASSES = {
    Result.INVALID_ARGUMENT: (pccl.InvalidArgumentError, ValueError),
    Result.TOO_FEW_PEERS: (pccl.TooFewPeersError, PCCLError),
    Result.RANK_CONNECTION_LOST: (pccl.PeerLostError, PCCLError),
    Result.MISMATCH: (pccl.MismatchError, ValueError),
    Result.TIMEOUT: (pccl.PCCLTimeoutError, TimeoutError),
    Result.MASTER_CONNECTION_LOST: (pccl.MasterLostError, ConnectionError),
    Result.EVICTED: (pccl.EvictedError, PCCLError),
    Result.REFUSED: (pccl.RefusedError, PCCLError),
}


@pytest.mark.parametrize("result", Result)
def test_each_result_has_its_class(result) -> None:
    error = error_for(result, "because")
    expected, builtin = CLASSES.get(result, (PCCLError, Exception))
    assert type(error) is expected
    assert isinstance(error, PCCLError)
    assert isinstance(error, builtin)
    assert error.result is result
    assert str(error) == "because"


@pytest.mark.parametrize("result", Result)
def test_each_result_has_a_text(result) -> None:
    texts = [str(PCCLError(other)) for other in Result]
    assert str(PCCLError(result)) == texts[result]
    assert len(set(texts)) == len(Result)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(error_for(Result.TIMEOUT, "after 3 s")))
    assert type(error) is pccl.PCCLTimeoutError
    assert (error.result, str(error)) == (Result.TIMEOUT, "after 3 s")


def test_check_names_the_function() -> None:
    PCCLError.check(0, "pcclConnect")
    with pytest.raises(pccl.RefusedError, match="pcclConnect"):
        PCCLError.check(int(Result.REFUSED), "pcclConnect")
