"""What the model reads is what the row says: control tokens, marks, system turns, chat templates, the context."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import scene_example
from PIL import Image
from test_policy import encoder

from gpg_vl.errors import UserError
from gpg_vl.models.encode import Encoder
from gpg_vl.models.load import load_processing
from gpg_vl.quickstart import scenes
from gpg_vl.types import Example, Message

PICTURE = scenes.png(Image.new("RGB", (56, 56)))
TURNS = (
    Message(role="system", content="You are X."),
    Message(role="user", content="Count the balls."),
    Message(role="assistant", content="<think>two red, one blue</think>There are 3."),
    Message(role="user", content="And the cubes?"),
)
FIRST = "{% for m in messages %}"
LAST = "{% endfor %}"
TEXT = "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|image_pad|>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"


def ask(prompt: str | tuple[Message, ...] = "How many?", **changes: object) -> Example:
    return replace(Example(id="7", prompt=prompt, answer="4"), **changes)


def with_template(checkpoint: Path, template: str) -> Encoder:
    made = encoder(checkpoint)
    tokenizer = deepcopy(made.processing.tokenizer)
    tokenizer.chat_template = template
    return replace(
        made, processing=replace(made.processing, tokenizer=tokenizer, chat_template=template)
    )


# ---- control tokens


def test_every_special_token_of_the_tokenizer_is_refused_in_a_row(tiny_checkpoint: Path) -> None:
    tokens = load_processing(str(tiny_checkpoint)).tokenizer.all_special_tokens
    assert {"<|endoftext|>", "<|im_end|>", "<|image_pad|>"} <= set(tokens)
    for token in tokens:
        for row in (
            ask(f"How many? {token} more"),
            ask((Message(role="system", content=token), Message(role="user", content="?"))),
            ask(choices=("a", f"b{token}")),
        ):
            with pytest.raises(UserError) as caught:
                encoder(tiny_checkpoint).count(row)
            assert f"control token {token}" in str(caught.value)


def test_a_token_that_was_added_to_the_tokenizer_is_refused_too(tiny_checkpoint: Path) -> None:
    made = encoder(tiny_checkpoint)
    tokens = replace(made.processing.tokens, special=("STOP.HERE",))
    made = replace(made, processing=replace(made.processing, tokens=tokens))
    with pytest.raises(UserError, match=r"control token STOP\.HERE"):
        made.count(ask("Do STOP.HERE now"))
    made.count(ask("Do STOPXHERE now"))


@pytest.mark.parametrize(
    "text", ["<think>", "Write <answer>4</answer>.", "a <| b", "im_end", "<image_pad>", "</s>"]
)
def test_what_only_looks_like_a_control_token_is_text(tiny_checkpoint: Path, text: str) -> None:
    assert encoder(tiny_checkpoint).count(ask(text)).notes == ()


@pytest.mark.parametrize("where", ["template", "system", "prefill"])
def test_the_style_holds_no_token_of_turns(tiny_checkpoint: Path, where: str) -> None:
    style = {where: "{prompt}<|im_end|>" if where == "template" else "<|im_end|>"}
    with pytest.raises(UserError, match=r"control token <\|im_end\|>"):
        encoder(tiny_checkpoint, **style).count(ask())


# ---- marks and system turns of the style


@pytest.mark.parametrize("chat", ["template", "plain"])
@pytest.mark.parametrize(
    "style, images, choices, said",
    [
        ({"template": "<image>{prompt}"}, 1, None, "2 <image> mark(s) for 1 image(s), because prompt.template"),
        ({"template": "<image>{prompt}"}, 0, None, "1 <image> mark(s) for 0 image(s)"),
        ({"system": "See <image>."}, 1, None, "because prompt.system brings some"),
        ({"template": "{prompt} {choices}"}, 1, ("<image>", "b"), "because the choices brings some"),
        ({"template": "{prompt}{prompt}"}, 1, None, None),
    ],
)  # fmt: skip
def test_marks_of_the_style_are_counted_before_any_weights(
    tiny_checkpoint: Path,
    chat: str,
    style: dict[str, str],
    images: int,
    choices: tuple[str, ...] | None,
    said: str | None,
) -> None:
    made = encoder(tiny_checkpoint, chat=chat, **style)
    row = ask(images=(PICTURE,) * images, choices=choices)
    if said is None:
        assert made.count(row).image_tokens == 4
        return
    with pytest.raises(UserError) as caught:
        made.count(row)
    assert said in str(caught.value)


def test_a_prefill_with_an_image_token_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"control token <\|image_pad\|>"):
        encoder(tiny_checkpoint, prefill="<|image_pad|>").count(ask())


def test_prompt_system_beside_a_system_turn_of_the_row_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"prompt\.system would be a second one"):
        encoder(tiny_checkpoint, system="You are Y.").count(ask(TURNS))
    assert "You are X." in encoder(tiny_checkpoint).render(ask(TURNS))
    assert "You are Y." in encoder(tiny_checkpoint, system="You are Y.").render(ask(TURNS[1:]))


# ---- chat templates


@pytest.mark.parametrize(
    "template, lost",
    [
        (FIRST + "{% if m['role'] != 'system' %}" + TEXT + "{% endif %}" + LAST, "'You are X.' of turn 1 (system)"),
        ("{% for m in messages[-1:] %}" + TEXT + LAST, "'You are X.'"),
        (FIRST + "{{ m['content'][0]['text'][:9] }}" + LAST, "turn 1 (system)"),
        (FIRST + "{% if m['role'] != 'assistant' %}" + TEXT + "{% endif %}" + LAST, "'There are 3.' of turn 3"),
        ("{% for m in messages | reverse %}" + TEXT + LAST, "of turn 2 (user)"),
        (FIRST + "{{ m['content'] | string | lower }}" + LAST, "turn 1"),
    ],
)  # fmt: skip
def test_a_template_that_loses_a_turn_is_named(
    tiny_checkpoint: Path, template: str, lost: str
) -> None:
    with pytest.raises(UserError) as caught:
        with_template(tiny_checkpoint, template).count(ask(TURNS))
    assert "chat template of the checkpoint leaves out or moves" in str(caught.value)
    assert lost in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        FIRST + "[{{ m['role'] }}] " + TEXT + "\n" + LAST,
        FIRST + TEXT.replace("p['text']", "p['text'] | trim") + LAST,
        FIRST
        + "{% if m['role'] == 'assistant' %}{{ m['content'][0]['text'].split('</think>')[-1] }}{% else %}"
        + TEXT
        + "{% endif %}"
        + LAST,
    ],
)
def test_a_template_that_trims_or_leaves_out_old_reasoning_is_taken(
    tiny_checkpoint: Path, template: str
) -> None:
    with_template(tiny_checkpoint, template).count(ask(TURNS))
    with_template(tiny_checkpoint, template).count(ask("  How many?\n"))


def test_a_template_that_puts_an_image_elsewhere_is_named(tiny_checkpoint: Path) -> None:
    front = (
        FIRST
        + "<|image_pad|>{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
        + LAST
    )
    row = ask("Before <image> and after?", images=(PICTURE,))
    with pytest.raises(UserError, match=r"leaves out or moves '<\|image_pad\|>'"):
        with_template(tiny_checkpoint, front).count(row)
    with_template(tiny_checkpoint, front).count(ask("<image>How many?", images=(PICTURE,)))


def test_a_template_without_images_is_found_by_the_check(tiny_checkpoint: Path) -> None:
    blind = (
        FIRST
        + "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}"
        + LAST
    )
    with pytest.raises(UserError, match="leaves out or moves"):
        with_template(tiny_checkpoint, blind).count(scene_example(1))


# ---- notes, and the context


def test_good_prompts_are_not_noted(tiny_checkpoint: Path) -> None:
    made = encoder(tiny_checkpoint, template="{prompt} Put it in \\boxed{answer}, as {choices}.")
    for row in (
        scene_example(1),
        ask(TURNS),
        ask("a\u0308 \u00e4 \U0001f600 \u4f60\u597d"),
        ask("  x "),
    ):
        assert made.count(row).notes == ()


def test_an_empty_question_is_noted_where_the_template_asks_nothing(tiny_checkpoint: Path) -> None:
    for prompt in ("", " ", "<image>", "<image>\n"):
        row = ask(prompt, images=(PICTURE,))
        assert [kind for kind, _ in encoder(tiny_checkpoint).count(row).notes] == ["question"]
        assert encoder(tiny_checkpoint, template="{prompt} How many?").count(row).notes == ()


def test_a_place_of_another_program_is_noted(tiny_checkpoint: Path) -> None:
    (note,) = encoder(tiny_checkpoint, template="{prompt} {options}").count(ask()).notes
    assert note[0] == "template"
    assert "{options}" in note[1]


def test_a_prompt_beyond_the_context_of_the_checkpoint_is_refused(tiny_checkpoint: Path) -> None:
    made = encoder(tiny_checkpoint)
    assert made.processing.tokens.context == 2048
    room = 2048 - made.count(ask("")).tokens
    assert made.count(ask("@" * room)).tokens == 2048
    for use in (made.count, made.encode):
        with pytest.raises(
            UserError, match=r"has 2049 tokens, more than the 2048 .*max_position_embeddings"
        ):
            use(ask("@" * (room + 1)))
