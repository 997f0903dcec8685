"""Files that say who asked, of a recording that is sealed or withheld."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracereplay.errors import DamagedTrace, UsageError
from tracereplay.storage.files import LocalFile
from tracereplay.trace import sealed
from tracereplay.trace.requests import (
    Identity,
    Moment,
    RequestFile,
    checked,
    described,
    read_identities,
    record_of,
    rewritten,
)

age = pytest.importorskip("pyrage").x25519


def test_a_sealed_file_is_read_with_its_key_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_keys", sealed._Keys())
    identity = age.Identity.generate()
    made = RequestFile(tmp_path, {"process": 1}, [str(identity.to_public())])
    made.add(record_of(Identity("a-1", "cmpl-secret-0", Moment(1, 2))))
    made.add(record_of(Identity("a-1", ended=Moment(3, 4), reason="stop", stop="the word")))
    made.close()
    file = LocalFile(made.path)
    data = made.path.read_bytes()
    assert b"secret" not in data
    with pytest.raises(UsageError):
        read_identities(file)
    key = tmp_path / "key"
    key.write_text(str(identity))
    sealed.use_identity(key)
    assert read_identities(file)["a-1"].stop == "the word"
    assert read_identities(file, {"a-1"})["a-1"].name == "cmpl-secret-0"
    assert checked(file, described(file)).end == len(data)
    damaged = tmp_path / "requests-9.req"
    damaged.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(DamagedTrace):
        checked(LocalFile(damaged), None)


def test_where_requests_stopped_is_withheld(tmp_path: Path) -> None:
    made = RequestFile(tmp_path, {"process": 1})
    made.add(record_of(Identity("a-1", "cmpl-a-0", reason="stop", stop="the word")))
    made.close()
    (tmp_path / "without").mkdir()
    out = tmp_path / "without" / "requests-3.req"
    rewritten(LocalFile(made.path), out, (), withhold=True)
    found = read_identities(LocalFile(out))["a-1"]
    assert (found.stop, found.reason) == (None, "stop")
