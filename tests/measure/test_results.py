"""A file of results: several may write it, what is not mtrkit's is left alone, and a link stays a link."""

import json
import os
import threading

import pytest

from mtrkit.errors import InputError
from mtrkit.measure.results import Results, configuration_key


def row(number, **more):
    return {"key": configuration_key({"number": number}), "number": number} | more


@pytest.fixture(params=["json", "csv"])
def file(request, tmp_path):
    return tmp_path / f"rows.{request.param}"


def numbers(file):
    return sorted(int(found["number"]) for found in Results(file).rows)


def test_two_that_write_in_turns_lose_nothing(file):
    first, second = Results(file), Results(file)
    first.add(row(1))
    second.add(row(2), row(3))
    first.add(row(4))
    assert numbers(file) == [1, 2, 3, 4]
    assert second.find(row(1)["key"])
    second.add(row(4, again=True))
    assert numbers(file) == [1, 2, 3, 4] and Results(file).find(row(4)["key"])["again"] in (True, "True")


def test_many_that_write_at_once_lose_nothing(file):
    def write(thread):
        results = Results(None)
        results.path = file
        for number in range(12):
            results.add(row(100 * thread + number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers(file)) == 48
    assert {path.name for path in file.parent.iterdir()} == {file.name, f".{file.name}.lock"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'{"precious": 1}'),
        ("b.json", b"oops"),
        ("c.json", b"[]"),
        ("d.json", b'[{"key": "mine", "value": 1}]'),
        ("e.json", b"\x89PNG\r\n\xff\x00"),
        ("f.json", b"[" * 100_000),
        ("g.json", b""),
        ("h.csv", b"name,score\n"),
        ("i.csv", b"key,score\nmine,1\n"),
        ("j.csv", b"\xff\xfe\x00"),
        ("k.csv", b""),
    ],
)
def test_what_is_not_ours_stays_as_it_is(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is there already and holds no results of mtrkit"):
        Results(tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


def test_what_takes_the_place_meanwhile_stays_too(file):
    results = Results(file)
    results.add(row(1))
    file.write_text("name,score\n")
    with pytest.raises(InputError, match="holds no results"):
        results.add(row(2))
    assert file.read_text() == "name,score\n" and results.find(row(1)["key"])


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "rows.json").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        Results(tmp_path / "rows.json")


def test_a_symbolic_link_stays_one(file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "store.dat"
    file.symlink_to(target)
    for number in (1, 2):
        Results(file).add(row(number))
    assert file.is_symlink() and target.exists() and numbers(file) == [1, 2]
    assert [path.name for path in tmp_path.glob("*.part")] == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_permissions_stay(file):
    Results(file).add(row(1))
    file.chmod(0o640)
    Results(file).add(row(2))
    assert file.stat().st_mode & 0o777 == 0o640


def test_any_name_can_be_written(file):
    Results(file).add(row(1, data="caf\udce9 × 2"))
    found = Results(file).rows[0]["data"]
    assert found == ("caf\udce9 × 2" if file.suffix == ".json" else "caf\\udce9 × 2")
    if file.suffix == ".json":
        assert "×" in file.read_text(encoding="utf-8") and json.loads(file.read_text(encoding="utf-8"))


def test_lists_come_back_from_csv_as_lists(tmp_path):
    row = {"key": "0" * 16, "layers": [], "tokens": [65, 33], "options": "{}"}
    Results(tmp_path / "rows.csv").add(row)
    assert Results(tmp_path / "rows.csv").rows == [row]
