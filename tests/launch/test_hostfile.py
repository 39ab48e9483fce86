"""Hostfiles: lines that are read, and lines that are refused with their number."""

from pathlib import Path

import pytest
from fmscale.launch.hostfile import Host, choose_hosts, read_hostfile

from fmscale.errors import ConfigError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hosts"
    path.write_text(text)
    return path


def test_hosts_are_read_in_their_order(tmp_path: Path) -> None:
    path = written(tmp_path, "# the rack\n\nnode-2 slots=8   # first\n10.0.0.7\tslots=4\n")
    assert read_hostfile(path) == (Host(name="node-2", slots=8), Host(name="10.0.0.7", slots=4))


@pytest.mark.parametrize(
    ("text", "cause", "found"),
    [
        ("a slots=1\nb\n", "2: not a host with its slots", "b"),
        ("a slots=1\nb slots=x\n", "2: not a host", "b slots=x"),
        ("a slots=-1\n", "1: not a host", "a slots=-1"),
        ("a:8\n", "1: not a host", "a:8"),
        ("a slots=2 max=3\n", "1: not a host", "a slots=2 max=3"),
        ("slots=2\n", "1: not a host", "slots=2"),
        ("a slots=0\n", "1: a has no slots", "a slots=0"),
        ("a slots=1\n\na slots=2\n", "3: a is listed before", "line 1 and line 3"),
        ("# nothing\n\n", "lists no host", None),
    ],
)
def test_what_is_no_hostfile_is_refused_with_its_line(tmp_path: Path, text: str, cause: str, found: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        read_hostfile(path)
    assert str(path) in error.value.cause
    assert cause in error.value.cause
    assert error.value.found == found
    assert error.value.remedy


def test_a_hostfile_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_hostfile(tmp_path / "hosts")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_hostfile(tmp_path)


THREE = (Host(name="a", slots=4), Host(name="b", slots=4), Host(name="c", slots=2))
PLACE = Path("hosts")


def test_the_first_hosts_are_chosen_and_their_slots_are_the_ranks() -> None:
    assert choose_hosts(THREE, 2, None, PLACE) == (THREE[:2], 4)
    assert choose_hosts(THREE, None, 2, PLACE) == (THREE, 2)
    assert choose_hosts(THREE, 1, 3, PLACE) == (THREE[:1], 3)


@pytest.mark.parametrize(
    ("nodes", "procs", "cause"),
    [
        (4, 1, "hosts has 3 hosts for 4 nodes"),
        (None, None, "different numbers of slots"),
        (3, 4, "gives c 2 slots for 4 ranks"),
    ],
)
def test_more_nodes_or_ranks_than_the_hostfile_has_are_refused(nodes: int, procs: int, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        choose_hosts(THREE, nodes, procs, PLACE)
