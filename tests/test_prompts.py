"""The prompt cell of a row: pictures that messages bring, messages that were stored as text, system turns."""

import base64
from typing import Any

import pytest

from gpg_vl.data.read import resolve_columns
from gpg_vl.data.rows import Row, RowProblem, parse_row
from gpg_vl.types import Example, Message

PNG = b"\x89PNG\r\n\x1a\n"
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()


def read(prompt: object, **cells: object) -> Row:
    row = {"prompt": prompt, "answer": "4", **cells}
    return parse_row(row, resolve_columns(list(row), {}, where="here"), row=0, source="here")


def user(content: object, **keys: object) -> dict[str, Any]:
    return {"role": "user", "content": content, **keys}


TEXT = {"type": "text", "text": "How many?"}


@pytest.mark.parametrize(
    "messages, images, texts",
    [
        # listed beside the content: in front of the text of their own turn, or where its marks are
        ([user("How many?", images=["a.png"])], ("a.png",), ["<image>How many?"]),
        ([user("How many?", image="a.png")], ("a.png",), ["<image>How many?"]),
        ([user("How many?", image={"bytes": PNG, "path": None})], (PNG,), ["<image>How many?"]),
        (
            [user("In <image> or <image>?", images=["a.png", "b.png"])],
            ("a.png", "b.png"),
            ["In <image> or <image>?"],
        ),
        (
            [
                user("Look.", images=["a.png"]),
                {"role": "assistant", "content": "I see."},
                user("And here?", images=["b.png"]),
            ],
            ("a.png", "b.png"),
            ["<image>Look.", "I see.", "<image>And here?"],
        ),
        # in a part of the content: in its place
        ([user([{"type": "image", "image": "a.png"}, TEXT])], ("a.png",), ["<image>How many?"]),
        ([user([TEXT, {"type": "image", "path": "a.png"}])], ("a.png",), ["How many?<image>"]),
        (
            [user([{"type": "image", "bytes": PNG, "path": "a"}, TEXT])],
            (PNG,),
            ["<image>How many?"],
        ),
        (
            [user([{"type": "image_url", "image_url": {"url": URI, "detail": "low"}}, TEXT])],
            (PNG,),
            ["<image>How many?"],
        ),
        ([user([{"type": "image_url", "image_url": URI}, TEXT])], (PNG,), ["<image>How many?"]),
        # what Arrow writes into every struct of a list
        (
            [
                user(
                    [
                        {"type": "image", "image": "a.png", "text": None},
                        {"type": "text", "text": "How many?", "image": None},
                    ],
                    images=None,
                )
            ],
            ("a.png",),
            ["<image>How many?"],
        ),
    ],
)
def test_pictures_inside_messages_are_used(
    messages: list[dict[str, Any]], images: tuple[str | bytes, ...], texts: list[str]
) -> None:
    for cells in ({}, {"images": None}, {"images": []}, {"images": list(images)}):
        row = read(messages, **cells)
        assert isinstance(row, Example), row
        assert row.images == images
        assert isinstance(row.prompt, tuple)
        assert [message.content for message in row.prompt] == texts


def test_pictures_of_the_images_column_are_those_of_parts_without_one() -> None:
    row = read([user([{"type": "image", "image": None}, TEXT])], images=["a.png"])
    assert isinstance(row, Example)
    assert row.images == ("a.png",)
    assert row.prompt == (Message(role="user", content="<image>How many?"),)


@pytest.mark.parametrize(
    "messages, cells, kind, said",
    [
        ([user("?", images=["a.png"])], {"images": ["b.png"]}, "image", "in one of the two places"),
        (
            [user([{"type": "image", "image": "a.png"}, TEXT])],
            {"images": ["a.png", "b.png"]},
            "image",
            "has 2 image(s), and the messages bring 1 others",
        ),
        ([user("<image><image>?", images=["a.png"])], {}, "marks", "2 <image> mark(s) and lists 1"),
        ([user("?", images=[""])], {}, "image", "Image 1 of 1 is"),
        ([user("?", images=["http://x.org/a.png"])], {}, "image", "nothing is fetched"),
        ([user([{"type": "image", "image": 7}, TEXT])], {}, "image", "Image 1 of 1 is 7"),
        ([user([{**TEXT, "image": "a.png"}])], {}, "prompt", "parts of their own"),
        ([user([{"type": "video", "video": "a.mp4"}, TEXT])], {}, "prompt", "a.mp4"),
        ([user("?", videos=["a.mp4"])], {}, "prompt", "video and audio are not read"),
        # under other keys they were left out, and the question went on without them
        ([user("?", image_path="a.png")], {}, "prompt", "'a.png' under 'image_path'"),
        ([user("?", image_url="x/pictures/7")], {}, "prompt", "under 'image_url'"),
        ([user("?", pictures=["a.png"])], {}, "prompt", "under 'pictures'"),
        ([user("?", attachments=[{"path": "a.PNG"}])], {}, "prompt", "under 'attachments'"),
        ([user("?", img=PNG)], {}, "prompt", "under 'img'"),
        ([user([{**TEXT, "image_path": "a.png"}])], {}, "prompt", "parts of their own"),
        ([user("?", audio="a.wav")], {}, "prompt", "under 'audio'"),
        ([user([{"type": "image"}, TEXT])], {}, "marks", "1 <image> mark(s) and the row has 0"),
    ],
)
def test_pictures_inside_messages_that_cannot_be_used_are_refused(
    messages: list[dict[str, Any]], cells: dict[str, Any], kind: str, said: str
) -> None:
    row = read(messages, **cells)
    assert isinstance(row, RowProblem), row
    assert row.kind == kind
    assert said in row.message


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "Which is red?"}]',
        ' [ {"content": "Which is red?", "role": "user"} ] ',
        "[{'role': 'user', 'content': 'Which is red?'}]",
        "array([{'content': 'Which is red?', 'role': 'user'}], dtype=object)",
        '{"role": "user", "content": "Which is red?"}',
        '{"messages": [{"role": "user", "content": "Which is red?"}]}',
        '[{"from": "human", "value": "Which is red?"}]',
        '{"conversations": [{"from": "human", "value": "Which is red?"}]}',
        '[{"id": 1, "role": "user", "content": "Which is red?"}]',
        '[{"type": "text", "text": "Which is red?"}]',
        '[{"type": "image"}, {"type": "text", "text": "Which is red?"}]',
        '[\n  {\n    "role": "system",\n    "content": "You are X."\n  }\n]',
    ],
)
def test_messages_that_are_stored_as_text_are_refused(text: str) -> None:
    row = read(text)
    assert isinstance(row, RowProblem), row
    assert row.kind == "prompt"
    assert "text that holds messages" in row.message

    inside = read([user(text)])
    assert isinstance(inside, RowProblem), inside
    assert "Message 1 of 1 is text that holds messages" in inside.message


def test_other_keys_of_a_message_are_no_pictures() -> None:
    row = read(
        [user("How many?", name="Ada", weight=1, image_id="17", image_size="84x56", path=None)]
    )
    assert isinstance(row, Example), row


@pytest.mark.parametrize(
    "text",
    [
        'What is the role in [{"role": "user", "content": "x"}]?',
        '[{"role": "king", "piece": "e1"}]',
        '{"table": [{"year": 1990, "value": 4}]}',
        "[1, 2, 3]",
        "{x | x > 2}",
        '[{"role": "user", "content": "x"}] How many messages are in the list?',
    ],
)
def test_a_question_with_brackets_is_a_question(text: str) -> None:
    row = read(text)
    assert isinstance(row, Example), row
    assert row.prompt == text


def test_a_conversation_has_one_system_turn_at_most() -> None:
    system = {"role": "system", "content": "You are X."}
    assert isinstance(read([system, user("?")]), Example)
    row = read([system, {"role": "system", "content": "You are Y."}, user("?")])
    assert isinstance(row, RowProblem)
    assert "has 2 system turns" in row.message
