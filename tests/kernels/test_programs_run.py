"""Whether the programs of a GPU can be used: by the Triton, the compiler and the other processes that there are."""

import pytest
import torch

from hitdet_nni.engine import distributed
from hitdet_nni.kernels.gpu import availability
from hitdet_nni.nas.fused import backend

triton = pytest.importorskip("triton")


@pytest.fixture
def asked_anew():
    availability.programs_run.cache_clear()
    yield
    availability.programs_run.cache_clear()


@pytest.mark.parametrize(
    ("version", "known"), [("3.2.0", False), ("2.3.1", False), ("3.3.0", True), ("3.10.0+git1", True), ("4.0.0", True)]
)
def test_an_older_triton_is_not_used(version, known, asked_anew, monkeypatch):
    """Those of torch 2.4 to 2.6 cannot compile the programs."""
    monkeypatch.setattr(triton, "__version__", version)
    assert availability.programs_run() == known


@pytest.fixture
def gpu(asked_anew, monkeypatch):
    """A GPU on which the first program ends as ``error`` says."""

    def with_error(error):
        def fail(*arguments, **options):
            raise error

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch, "ones", fail)

    return with_error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        PermissionError(13, "Permission denied", "cache/triton"),
        ImportError(),
    ],
)
def test_without_a_compiler_torch_computes_and_it_is_said_once(error, gpu, caplog):
    gpu(error)
    assert [availability.programs_run() for _ in range(2)] == [False, False]
    (record,) = caplog.records
    assert "slower operations of torch take their place" in record.getMessage()
    assert "a C compiler (gcc), Python's headers (python3-dev)" in record.getMessage()
    meta = torch.empty(1, 2, 3, 4, device="meta")
    assert not backend.uses_triton(meta)
    assert backend.passes(meta) == (backend.GroupPass, backend.DensePass)


def test_all_processes_use_programs_or_none(monkeypatch):
    """Passes of programs and of torch's operations exchange different sums."""
    monkeypatch.setattr(backend, "_PROGRAMS_MISSING", set())
    meta = torch.empty(1, 2, 3, 4, device="meta")
    monkeypatch.setattr(distributed, "gather", lambda value: [value, True])
    backend.agree_on_programs(torch.device("cuda"))
    assert backend.uses_triton(meta)
    monkeypatch.setattr(distributed, "gather", lambda value: [value, False])
    backend.agree_on_programs(torch.device("cpu"))
    assert backend.uses_triton(meta)
    backend.agree_on_programs(torch.device("cuda"))
    assert not backend.uses_triton(meta)
