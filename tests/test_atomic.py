import pytest

from tenfold.atomic import replacing, write_text


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "notes.txt"
    write_text(path, "one")
    write_text(path, "zwei, ≤ 3")
    assert path.read_text(encoding="utf-8") == "zwei, ≤ 3"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_the_former_file(tmp_path, end):
    path = tmp_path / "notes.txt"
    write_text(path, "one")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("tw")
            raise end

    with pytest.raises(end):
        interrupted()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_keeps_the_suffix(tmp_path):
    with replacing(tmp_path / "picture.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.touch()
