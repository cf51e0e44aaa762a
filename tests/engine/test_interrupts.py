"""Ctrl-C while modules are being imported, or objects end."""

import gc
import importlib
import signal
import sys
import threading
import weakref

import pytest

from hitdet_nni.engine.process import heard_interrupts

SLOW = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.2)
whole = True
"""


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """Name of a module in whose import Ctrl-C comes."""
    (tmp_path / "slowly_imported.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    yield "slowly_imported"
    sys.modules.pop("slowly_imported", None)


def test_an_import_is_interrupted_once_it_is_whole(slow):
    before = signal.getsignal(signal.SIGINT)

    def work():
        with heard_interrupts():
            importlib.import_module(slow)
            threading.Event().wait(30)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert sys.modules[slow].whole
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_is_not_lost_where_nothing_follows_the_import(slow):
    with pytest.raises(KeyboardInterrupt), heard_interrupts(), heard_interrupts():
        importlib.import_module(slow)
    assert sys.modules[slow].whole


def test_what_is_no_import_is_interrupted_at_once():
    with pytest.raises(KeyboardInterrupt), heard_interrupts():
        signal.raise_signal(signal.SIGINT)


def test_work_within_an_import_can_be_interrupted(tmp_path, monkeypatch):
    """Such as a module of a person's own that calls the package as it is imported."""
    text = "import signal\nfrom hitdet_nni.engine.process import heard_interrupts\nwith heard_interrupts():\n"
    (tmp_path / "calls_at_once.py").write_text(f"{text}    signal.raise_signal(signal.SIGINT)\n    reached = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("calls_at_once")


def test_other_threads_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with heard_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def come(*_):
    signal.raise_signal(signal.SIGINT)
    len("bytecode, at which Python looks for signals")


class Ends:
    """An object at whose end Ctrl-C comes."""

    __del__ = come


class Plain:
    """Any object."""


def with_a_callback():
    thing = Plain()
    thing.callback = weakref.ref(thing, come)
    WATCHED.append(weakref.ref(thing, come))
    return thing


def with_a_finalizer():
    thing = Plain()
    weakref.finalize(thing, come)
    return thing


def with_a_generator():
    def generate():
        try:
            yield
        finally:
            come()

    thing = Plain()
    thing.generator = generate()
    next(thing.generator)
    return thing


WATCHED = []


@pytest.mark.parametrize("made", [Ends, with_a_callback, with_a_finalizer, with_a_generator])
def test_an_interrupt_in_a_collection_of_garbage_is_not_lost(made):
    gc.collect()
    reached = []

    def work():
        with heard_interrupts():
            thing = made()
            thing.itself = thing
            del thing
            gc.collect()
            reached.append("the end of the collection")
            threading.Event().wait(30)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached
