"""A chat template is a program from outside: tried under limits before it is trusted, and what it refuses is said."""

import json
import shutil
from pathlib import Path

import pytest
from runs import gpg_vl, write_config
from transformers import AutoTokenizer

from gpg_vl.cli import main
from gpg_vl.errors import UserError
from gpg_vl.model import Model
from gpg_vl.models.load import load_processing
from gpg_vl.models.template import try_template
from gpg_vl.models.template_worker import render_all
from gpg_vl.prompting import PromptStyle
from gpg_vl.training.prepare import describe_unknown_end
from gpg_vl.types import Example, Message

DOUBLING = "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
BUSY = "{{ 10 ** 10 ** 10 }}{{ (2 ** 99999999) ** 99 }}"
WORDY = "{% for i in range(99999) %}{{ messages[0].role * 9 }}{% endfor %}"
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 'a' * 10 ** 11 }}", "asks for more than 1024 MiB"),
        ("{{ 'a'.center(10 ** 10) }}", "asks for more than 1024 MiB"),
        ("{{ (range(99999) | list * 99999) | join }}", "asks for more than 1024 MiB"),
        (DOUBLING, "asks for more than 1024 MiB"),
        (ENDLESS, "computes for more than 3 s"),
        (BUSY, "computes for more than 3 s"),
        (WORDY, "characters of a few words"),
        ("{% if messages | length > 2 %}{{ 'a' * 10 ** 11 }}{% endif %}", "1024 MiB"),
        ("{% if messages[0].role == 'system' %}{{ 'a' * 10 ** 11 }}{% endif %}", "1024 MiB"),
    ],
)
def test_a_template_without_bounds_is_refused(template: str, why: str) -> None:
    """Constants too, which jinja2 computes when it compiles; and what only conversations of some shape set off."""
    with pytest.raises(UserError, match=f"The chat template of there cannot be used: it .*{why}"):
        try_template(template, {}, has_vision=False, where="there")


@pytest.mark.parametrize(
    ("template", "behind"),
    [
        (PLAIN, "<|im_end|>\n"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "</s>"),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}!{% endgeneration %}{% endfor %}",
            "!",
        ),
        ("{{ messages[0].content }}", None),
        ("{{ raise_exception('no conversation at all') }}", None),
        ("{% if %}", None),
    ],
)
def test_what_stands_behind_an_answer(template: str, behind: str | None) -> None:
    variables = {"eos_token": "</s>"}
    assert try_template(template, variables, has_vision=False, where="there") == behind


def test_the_worker_renders_as_the_library_does(tiny_checkpoint: Path) -> None:
    """Or else something else is tried than is used later."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    turns = [{"role": "user", "content": "a <b> é"}, {"role": "assistant", "content": "c"}]
    for template in (
        PLAIN,
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }}",
        "{% for m in messages %}\n  {% if loop.last %}{% break %}{% endif %}\n{{ m.role }}\n{% endfor %}",
        "{{ bos_token }}{{ eos_token }}{{ strftime_now('%Y') }}{{ tools is none }}{{ documents is none }}",
        "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}{% endfor %}",
        "{% if add_generation_prompt %}go{% endif %}",
    ):
        names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
        (ours,) = render_all(template, [given], names)
        theirs = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert ours["text"] == theirs, template


# ---- in a checkpoint


def with_template(checkpoint: Path, folder: Path, template: object, file: str = "") -> Path:
    """A copy of the checkpoint with another template, in the file of its own or in an older one."""
    shutil.copytree(checkpoint, folder)
    if not file:
        (folder / "chat_template.jinja").write_text(str(template))
        return folder

    (folder / "chat_template.jinja").unlink()
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**content, "chat_template": template}))
    return folder


@pytest.mark.parametrize("file", ["", "tokenizer_config.json", "chat_template.json"])
def test_wherever_it_stands_it_is_tried_before_it_is_used(
    tiny_checkpoint: Path, tmp_path: Path, file: str
) -> None:
    folder = with_template(tiny_checkpoint, tmp_path / "model", "{{ 'a' * 10 ** 11 }}", file)
    with pytest.raises(UserError, match=r"chat template of .*model cannot be used: it asks for"):
        load_processing(str(folder))


def test_every_command_that_loads_a_checkpoint_refuses_it(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_template(tiny_checkpoint, tmp_path / "model", DOUBLING)
    config = write_config(tmp_path, folder)
    data = str(tmp_path / "train.parquet")
    said = "cannot be used: it asks for more than 1024 MiB"
    for words in (
        ["data", "check", str(config)],
        ["serve", str(folder)],
        ["eval", "cvbench", "--model", str(folder), "--data", data],
    ):
        assert main(words) == 2, words
        assert said in capsys.readouterr().err, words

    trained = gpg_vl("train", config)
    assert trained.returncode == 2
    assert said in trained.stderr
    assert "Traceback" not in trained.stderr
    assert not (tmp_path / "run").exists()


def test_a_template_that_is_no_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = with_template(tiny_checkpoint, tmp_path / "model", 5, "chat_template.json")
    with pytest.raises(UserError, match="is 5; it must be a text"):
        load_processing(str(folder))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('No system turn!') }}{% endif %}",
            "No system",
        ),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ nothing.there }}", "UndefinedError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_conversation_that_it_refuses(
    tiny_checkpoint: Path, tmp_path: Path, template: str, why: str
) -> None:
    folder = with_template(tiny_checkpoint, tmp_path / "model", template)
    encoder = Model.load(folder, device="cpu").encoder(style=PromptStyle(system="Think."))
    example = Example(id="7", prompt=(Message(role="user", content="Which?"),), answer="A")
    with pytest.raises(UserError, match=rf"refuses a conversation of system, user: .*{why}"):
        encoder.render(example)


# ---- the token behind an answer


def ending_with(checkpoint: Path, folder: Path, token: str) -> Path:
    return with_template(checkpoint, folder, PLAIN.replace("<|im_end|>", token))


def test_an_end_of_turn_that_ends_nothing_is_said_before_training(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """<|im_start|> stands for a token that is in the vocabulary, but that no file calls an end."""
    folder = ending_with(tiny_checkpoint, tmp_path / "model", "<|im_start|>")
    encoder = Model.load(folder, device="cpu").encoder()
    number = encoder.processing.tokenizer.convert_tokens_to_ids("<|im_start|>")
    said = describe_unknown_end(encoder)
    assert f"ends an answer with <|im_start|> ({number}), but the end tokens" in said
    assert "<|im_end|> (" in said
    assert f"add {number} to eos_token_id" in said

    plain = Model.load(folder, device="cpu").encoder(style=PromptStyle(chat="plain"))
    assert describe_unknown_end(plain) == ""

    # the template shows texts alone
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "Which {n}?", "answer": "{n}"}}\n' for n in range(12)))
    config = write_config(tmp_path, folder, data={"train": str(rows), "columns": {}})
    dry = gpg_vl("train", config, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "ends an answer with <|im_start|>" in " ".join(dry.stdout.replace("│", " ").split())


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "", "\n"])
def test_an_end_of_turn_that_is_one_goes_without_a_word(
    tiny_checkpoint: Path, tmp_path: Path, token: str
) -> None:
    folder = ending_with(tiny_checkpoint, tmp_path / "model", token)
    assert describe_unknown_end(Model.load(folder, device="cpu").encoder()) == ""
