"""The log as a state machine: several processes, with a fate for every request.

Each process runs one operation at a time (commit, retire, pin, unpin, collect, take a lease) and stops at every request
to the store; the machine picks the process that continues and the request's fate: success, a lost request, a lost
answer, a double execution, a late arrival, or a kill of its sender. Each step ends with a check of the store itself,
past all caches.
"""

import uuid
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fmscale.errors import Conflict, LeaseLost, StoreUnavailable
from fmscale.store.log.entry import LogEntry, decode
from fmscale.store.log.keyset import KeySet
from fmscale.store.log.lease import Lease, acquire
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.log.retirement import RetirementState, collect_garbage, commit, pin, replay, retire, unpin
from fmscale.store.open import open_store
from tests.helpers.stepped import FATES, Process

PREFIX = "runs/r"
LATER = 10_000_000_000.0
PROCESSES = 3
WHO = st.integers(0, PROCESSES - 1)
HOW = st.sampled_from(["start", "to put", "to put", "whole", "whole"])


def references(entry: LogEntry) -> list[str]:
    return list(entry.body["names"])


def waits(process: Process) -> bool:
    """True while the process waits at a request."""
    return process.call is not None


class LogMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.store = open_store(f"memory://{uuid.uuid4().hex}")
        self.tags = count()
        self.leases = [0]
        self.acknowledged: dict[int, LogEntry] = {}
        self.refused: set[str] = set()
        self.checked: list[str] = []
        self.running: dict[int, str] = {}
        self.late: list[Callable[[], object]] = []
        self.processes = [self.spawn() for _ in range(PROCESSES)]

    def spawn(self) -> tuple[Process, Log, RetirementState]:
        process = Process(self.store)
        return process, Log(process.store, PREFIX, RUN_KINDS, readers=1), RetirementState()

    def raw(self) -> list[LogEntry]:
        keys = sorted(info.key for info in self.store.list_objects(f"{PREFIX}/log"))
        assert keys == [f"{PREFIX}/log/{number:012d}.json" for number in range(len(keys))], "gap-free"
        return [decode(self.store.get(key), key, number, RUN_KINDS) for number, key in enumerate(keys)]

    def state(self, entries: list[LogEntry] | None = None) -> RetirementState:
        state = RetirementState()
        for entry in self.raw() if entries is None else entries:
            state.apply(entry)
        return state

    def start(self, who: int, how: str, work: Callable[[Log, RetirementState, str], object]) -> None:
        """Run an operation up to its first request, its first put of an entry, or its end."""
        process, log, state = self.processes[who]
        if waits(process):
            return
        tag = f"t{next(self.tags)}"
        self.running[who] = tag
        process.start(lambda: work(log, state, tag))
        while waits(process) and (how == "whole" or (how == "to put" and not process.at_put())):
            process.step()
        self.settle(who)

    @rule(who=WHO, how=HOW, data=st.data(), folder=st.booleans(), kept=st.booleans())
    def commit(self, who: int, how: str, data: st.DataObject, folder: bool, kept: bool) -> None:
        old = sorted({name for entry in self.state().live.values() for name in entry.body["names"]})
        share = bool(old) and data.draw(st.integers(0, 2)) > 0
        some = st.lists(st.sampled_from(old), min_size=1, max_size=2, unique=True) if share else st.just([])
        shared = data.draw(some)
        lease = data.draw(st.sampled_from([*self.leases, self.leases[-1], None]))

        def work(log: Log, state: RetirementState, tag: str) -> LogEntry:
            keys = [f"data/{tag}/a", f"data/{tag}/b"] if folder else [f"data/{tag}"]
            for key in keys:
                log.backend.put(key, b"data")
            names = [f"data/{tag}/" if folder else f"data/{tag}", *shared]
            body = {"names": names, "tag": tag}
            return commit(log, "commit", body, names, lease=lease, state=state if kept else None)

        self.start(who, how, work)

    @rule(who=WHO, how=HOW, data=st.data(), action=st.sampled_from(["retire", "pin", "unpin"]))
    def act_on_commits(self, who: int, how: str, data: st.DataObject, action: str) -> None:
        live = sorted(self.state().live)
        if not live:
            return
        numbers = data.draw(st.lists(st.sampled_from(live), min_size=1, max_size=2, unique=True))

        def work(log: Log, state: RetirementState, tag: str) -> LogEntry:
            if action == "retire":
                return retire(log, numbers, references, reason=tag, state=state)
            return (pin if action == "pin" else unpin)(log, numbers, f"run {who}", state=state)

        self.start(who, how, work)

    @rule(who=WHO, how=HOW, dry_run=st.booleans())
    def collect(self, who: int, how: str, dry_run: bool) -> None:
        self.start(
            who,
            how,
            lambda log, state, tag: collect_garbage(log, references, grace=0.0, now=LATER, dry_run=dry_run),
        )

    @rule(who=WHO, how=HOW)
    def take_lease(self, who: int, how: str) -> None:
        self.start(who, how, lambda log, state, tag: acquire(log, f"process {who}"))

    @rule(who=WHO, fate=st.sampled_from(FATES), until_put=st.booleans())
    def step(self, who: int, fate: str, until_put: bool) -> None:
        process = self.processes[who][0]
        while until_put and process.call is not None and not process.at_put():
            process.step()
        if process.call is not None:
            process.step(fate)
        self.settle(who)

    @rule(who=WHO)
    def finish(self, who: int) -> None:
        self.processes[who][0].finish()
        self.settle(who)

    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        """A request arrives after its sender assumed its loss."""
        if self.late:
            self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))()

    def settle(self, who: int) -> None:
        process = self.processes[who][0]
        self.late += process.late
        process.late = []
        if process.call is not None or who not in self.running:
            return
        tag = self.running.pop(who)
        if process.killed:
            self.processes[who] = self.spawn()
        elif isinstance(process.error, Conflict | LeaseLost):
            self.refused.add(tag)
        elif isinstance(process.error, StoreUnavailable):
            pass  # the outcome is unknown, and the caller knows this
        elif process.error is not None:
            raise process.error
        elif isinstance(process.result, LogEntry):
            self.acknowledged[process.result.number] = process.result
        elif isinstance(process.result, Lease):
            self.leases.append(process.result.number)

    @invariant()
    def the_store_is_right(self) -> None:
        entries = self.raw()
        if [entry.digest for entry in entries] != self.checked:
            self.the_log_is_one_line(entries)
            self.every_entry_keeps_the_rules(entries)
            self.checked = [entry.digest for entry in entries]
        self.live_commits_are_whole(entries)

    def the_log_is_one_line(self, entries: list[LogEntry]) -> None:
        assert len({entry.uuid for entry in entries}) == len(entries), "an append appears once"
        lease = 0
        for before, entry in zip([None, *entries], entries, strict=False):
            lease += entry.kind == "lease"
            assert entry.lease == lease, "no entry under an older lease after a newer one"
            assert entry.previous == (before.digest if before else "")
        for number, entry in self.acknowledged.items():
            assert entries[number] == entry, "what was acknowledged stays"
        for entry in entries:
            assert entry.body.get("tag", entry.body.get("reason")) not in self.refused

    def live_commits_are_whole(self, entries: list[LogEntry]) -> None:
        keys = {info.key for info in self.store.list_objects("data")}
        for entry in self.state(entries).live.values():
            for name in entry.body["names"]:
                wanted = {f"{name}a", f"{name}b"} if name.endswith("/") else {name}
                assert wanted <= keys, f"an object of live commit {entry.number} is gone"

    def every_entry_keeps_the_rules(self, entries: list[LogEntry]) -> None:
        """The rules of `retire`, checked entry by entry at the place where each stands."""
        state = RetirementState()
        for entry in entries:
            if entry.kind == "commit":
                assert not any(state.dead.touches(name) for name in references(entry)), "commits what is dead"
            if entry.kind in ("retire", "pin"):
                assert set(entry.body["commits"]) <= set(state.live), f"{entry.kind} of what is not live"
            state.apply(entry)
            if entry.kind == "retire":
                assert not set(entry.body["commits"]) & set(state.pins), "retires what is pinned"
                needed = KeySet(name for one in state.live.values() for name in references(one))
                assert not any(needed.touches(name) for name in entry.body["objects"]), "names what is needed"

    def teardown(self) -> None:
        for who in range(PROCESSES):
            self.finish(who)
        for effect in self.late:
            effect()
        self.checked = []
        self.the_store_is_right()
        fresh = Log(self.store, PREFIX, RUN_KINDS)
        assert list(fresh.entries()) == self.raw()
        assert fresh.head() == len(self.raw())
        assert replay(fresh).live == self.state().live


def check(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        LogMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_log_machine() -> None:
    check(100, 30)


@pytest.mark.slow
def test_log_machine_long() -> None:
    check(1000, 60)
