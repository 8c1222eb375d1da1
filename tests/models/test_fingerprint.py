"""A checkpoint is known by its content: not by where it lies, nor by what lies beside it."""

import shutil

from igap.models.fingerprint import fingerprint


def test_copies_have_one_fingerprint_and_any_change_another(checkpoint, tmp_path):
    original = checkpoint("gpt2")
    copy = shutil.copytree(original, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(original)
    (copy / "README.md").write_text("notes")
    assert fingerprint(copy) == fingerprint(original)
    seen = {fingerprint(original)}
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        path = copy / name
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
        seen.add(fingerprint(copy))
    assert len(seen) == 4


def test_of_a_hub_snapshot_its_commit_is_enough(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--x" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    assert fingerprint(snapshot) == "hub:0123456789abcdef"
